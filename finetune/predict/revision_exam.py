"""Two revisions of an exam as one exam (--revisions): the questions that both have."""

from __future__ import annotations

from dataclasses import replace

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data.exam import Exam
from finetune.data.exam_revisions import join_revisions
from finetune.evaluation.revision_scores import describe_join
from finetune.predict.exam import select_split
from finetune.predict.loading import open_exam
from finetune.reports.revisions import count_sentence
from finetune.runtime.console import log
from finetune.runtime.errors import UserError


def open_revisions(flags: InferenceArgs) -> Exam:
    """Read both revisions of --revisions, and return the exam of what they share, see `shared_exam`.

    Raises:
        UserError: one cannot be read, both are one commit, or they share no question.
    """
    source, names = required(flags.exam), required(flags.revisions)
    exams = [open_exam(replace(flags, revision=name), source, "--exam", flags.on_bad_rows) for name in names]
    commits = {exam.origin.rpartition("(")[2] for exam in exams}
    if len(commits) == 1:
        raise UserError(
            f"--revisions {' '.join(names)}：兩個名稱是同一個版本（commit {commits.pop().rstrip(')')}）"
        )
    return shared_exam(exams[0], exams[1], flags.split, (names[0], names[1]))


def shared_exam(old: Exam, new: Exam, split: str, names: tuple[str, str]) -> Exam:
    """Return the newer exam with only those questions of a split that both have, under the newer key.

    Its other splits stay as they are; its `revisions` is the join of all rows.

    Args:
        old: the first revision.
        new: the second.
        split: as `select_split` takes it.
        names: of the revisions.

    Raises:
        UserError: no such split, or no question in common.
    """
    (_, old_rows), (name, new_rows) = select_split(old, split), select_split(new, split)
    join = join_revisions(old_rows, new_rows, names)
    log(f"題庫的兩個版本：{count_sentence(describe_join(join))}")
    shared = [join.new[pair.new] for pair in join.shared]
    if not shared:
        raise UserError(
            f"--revisions：{old.origin}（{len(old_rows)} 題）與 {new.origin}（{len(new_rows)} 題）"
            f"在 {name} 這一部分沒有一題有答案而題目、選項都相同，無法評測"
        )
    kept = {} if name == "all" else {part: rows for part, rows in new.questions.items() if part != name}
    return replace(
        new,
        questions={**kept, "" if name == "all" else name: shared},
        keyless={} if name == "all" else {part: rows for part, rows in new.keyless.items() if part != name},
        origin=f"{new.origin}，與 {old.origin} 共有的題目",
        skipped=[*old.skipped, *new.skipped],
        revisions=join,
    )
