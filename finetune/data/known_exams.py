"""Exams on the hub that are known by name: where they are, which revision, which split is the test.

A short name (`--exam tmlu`) or the repository's own name finds an exam; a file or folder of that name wins.
A revision is a tag or a commit of which it is known what it holds; where none could be established it is
`main`, and the report names the commit that `main` was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAIN = "main"  # revision of a dataset of which nothing better is known


@dataclass(frozen=True)
class KnownExam:
    """An exam of multiple-choice questions on the hub.

    Attributes:
        repository: owner and name on the hub.
        revision: tag, commit or branch that is read unless --revision says otherwise.
        test: the split that is the test; `train` where the hub has no other.
        shots: the split that examples for few-shot prompts come from; "" where there is none.
        formerly: names of the repository that the hub still forwards.
        only: patterns of the files with questions; () are all data files.
        leave_out: patterns of files that are left out.
        archive: the one zip that holds all files; "" where they lie openly.
        answers_from: number of the first option in integer answers; "" where answers are letters.
        unavailable: what to say where it cannot be fetched.
    """

    repository: str
    revision: str = MAIN
    test: str = "test"
    shots: str = "dev"
    formerly: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    archive: str = ""
    answers_from: str = ""
    unavailable: str = ""


KNOWN = {
    # A tag of its own: 19,680 test rows; v1.0 has 20,118.
    "tmmluplus": KnownExam("ikala/tmmluplus", "v1.1"),
    # {subject}_{dev,test}.jsonl, options A to F. Private since August 2026 (lm-evaluation-harness #3985), so
    # that no commit can be checked.
    "tmlu": KnownExam(
        "miulab/tmlu",
        unavailable="miulab/tmlu 自 2026 年 8 月起不再公開；有先前下載的檔案，就指定那個資料夾",
    ),
    # tmmluplus-{subject}/{dev,test}-…parquet beside drcd, penguin_table and others that are no exam. Which
    # of the commits seen is its main could not be established.
    "tceval": KnownExam("MediaTek-Research/TCEval-v2", only=("tmmluplus-*/*",)),
    # holdout/…: geography, government, history, society, 349 rows. The hub's page shows main at 7694346, in
    # this short form only.
    "formosa": KnownExam("lianghsun/Formosa-bench", shots=""),
    # benchmark.csv, 209 rows. The hub's page shows main at 66c3a5f, in this short form only.
    "tw-legal": KnownExam("lianghsun/tw-legal-benchmark-v1", test="train", shots=""),
    # tw_ed_exam.jsonl, 1,719 rows of five options. The hub's page shows main at 88d2d2e, see tw-legal.
    "tw-emergency": KnownExam("lianghsun/tw-emergency-medicine-bench", test="train", shots=""),
    # cmmlu_v1_0_1.zip: {dev,test}/{subject}.csv, 67 subjects, 11,582 test rows.
    "cmmlu": KnownExam(
        "lmlmcat/cmmlu", "efcc940752ea4a1ea94d2727f11f83858d64fc8e", formerly=("haonan-li/cmmlu",),
        archive="cmmlu_v1_0_1.zip",
    ),
    # {subject}/{dev,val,test}-…parquet; its 12,342 test rows have no key, its 1,346 of val have.
    "ceval": KnownExam("ceval/ceval-exam", "617524a00b307ff6f9933702f724131fe12ca7ce"),
    # {subject}/{dev,validation,test}-…parquet; `all` holds the same rows once more, and auxiliary_train
    # 99,842 rows of other datasets.
    "mmlu": KnownExam(
        "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe",
        leave_out=("all/*", "auxiliary_train/*"), answers_from="0",
    ),
    # data/{validation,test}-…parquet, 12,032 test rows of up to ten options.
    "mmlu-pro": KnownExam(
        "TIGER-Lab/MMLU-Pro", "b189ec765aa7ed75c8acfea42df31fdae71f97be", shots="validation"
    ),
}  # fmt: skip

NAMED = tuple(short for short in KNOWN if short != "tmmluplus")  # for help texts: it has a line of its own

_BY_NAME = {
    name.casefold(): exam
    for short, exam in KNOWN.items()
    for name in (short, exam.repository, *exam.formerly)
}


def known_exam(source: str) -> KnownExam | None:
    """Return the exam that a source names, None for any other; a file or folder of that name wins."""
    exam = _BY_NAME.get(source.casefold())
    return None if exam is None or Path(source).expanduser().exists() else exam


def default_revision(source: str) -> str:
    """Return the revision of a dataset that is read unless another one is asked for."""
    exam = _BY_NAME.get(source.casefold())
    return exam.revision if exam else MAIN
