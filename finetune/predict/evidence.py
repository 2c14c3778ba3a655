"""What a score rests on, for results.json and the page: protocol, a whole prompt, versions, data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune.cli.inference_args import GENERATION_FLAGS, InferenceArgs
from finetune.data.exam import Exam
from finetune.data.question import Question
from finetune.data.subjects import SUBJECTS
from finetune.models.run_card import versions
from finetune.predict.asking import example_rows
from finetune.predict.generative import GenerativePredictor
from finetune.predict.predictor import Predictor
from finetune.prompts.option_order import PromptError
from finetune.prompts.protocol import CHAT
from finetune.prompts.question_writer import Asking
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.hub import is_local

TMMLUPLUS = "ikala/tmmluplus"
RELEASES = {19_680: "v1.1", 20_118: "v1.0"}  # test rows of the 66 subjects (the dataset's card)


def evidence_of(
    flags: InferenceArgs,
    exam: Exam,
    predictor: Predictor,
    rows: Sequence[Question],
    asking: Asking,
    orders: str,
) -> dict[str, Any]:
    """Return what a score rests on.

    Args:
        rows: the questions that are scored.
        asking: how they are asked.
        orders: option orders: `1`, `cyclic` or `all`.
    """
    method = predictor.method(flags.scoring)
    differing = [] if asking.is_ours else differences(flags, exam, rows, asking, method)
    if not asking.is_ours and orders != "1" and parse(method).by_letter:
        theirs = "檔案裡寫的" if asking.protocol.is_own else "公布的"
        differing.insert(0, f"選項順序取平均（--orders {orders}），{theirs}只照原順序")
    if not asking.is_ours and asking.format == CHAT and isinstance(predictor, GenerativePredictor):
        asked = predictor.writer.messages(rows[0], range(len(rows[0].options)))
        differing += sorted(predictor.remarks(asked))  # what the chat template has no place for
    return {
        "protocol": {
            "name": asking.protocol.name,
            "title": asking.protocol.title,
            "own": asking.protocol.is_own,
            "source": asking.protocol.source,
            "format": asking.format if predictor.is_causal else "masked",
            "num_fewshot": asking.num_fewshot,
            "fewshot_as_multiturn": asking.multiturn if _has_turns(asking, predictor) else None,
            "system_prompt": asking.system_prompt,
            "chat_template_kwargs": dict(asking.template_kwargs),
            "scoring": method,
            "orders": orders if parse(method).by_letter else "1",
            "runs": flags.repeat or 1,
            "aggregate": asking.protocol.aggregate,
            "max_new_tokens": predictor.reply_length if method == GENERATE else None,
            "decoding": _decoding(flags) if method == GENERATE else {},
            "differences": differing,
        },
        "prompt": prompt_record(predictor, rows, method),
        "environment": {
            **predictor.environment(),
            "versions": versions(),
        },
        "data": {
            "source": exam.origin,
            "revision": None if flags.exam == "demo" or is_local(flags.exam or "") else flags.revision,
            "split": flags.split,
            "rows": len(rows),
            "release": release_of(exam),
        },
    }  # fmt: skip


def release_of(exam: Exam) -> str:
    """Return the release of TMMLU+ whose test rows these are, by their number; "" for another exam."""
    return RELEASES.get(sum(row.subject in SUBJECTS for row in exam.questions.get("test", ())), "")


def prompt_record(predictor: Predictor, rows: Sequence[Question], method: str) -> dict[str, Any]:
    """Return the first prompt that can be written, whole, with its length and the hash of its token ids.

    The hash is the SHA-256 of the ids in decimal, joined by commas.
    """
    for row in rows:
        try:
            text, ids = predictor.prompt_of(row, method)
        except PromptError:
            continue
        digest = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest() if ids else ""
        return {"id": row.id, "text": text, "tokens": len(ids), "token_ids_sha256": digest}
    return {}


def prompt_texts(predictor: Predictor, rows: Sequence[Question], method: str) -> list[str]:
    """Return each question's prompt for --log_prompts; "" for one that cannot be written."""
    texts = []
    for row in rows:
        try:
            texts.append(predictor.prompt_of(row, method)[0])
        except PromptError:
            texts.append("")
    return texts


def differences(
    flags: InferenceArgs, exam: Exam, rows: Sequence[Question], asking: Asking, method: str
) -> list[str]:
    """Return in which ways a score is not what the protocol publishes, in words.

    Of a person's own file: in which ways it is not as the file has it. Which questions it is for, none says.
    """
    protocol, found = asking.protocol, []
    theirs = "檔案裡寫的" if protocol.is_own else "公布的"
    if method != asking.form.scoring:
        found.append(f"作答方式是 {method}（--scoring），{theirs}是 {asking.form.scoring}")
    if method == GENERATE:
        found += _reply_differences(flags, asking.form.max_new_tokens, theirs)
    if asking.system_prompt:
        found.append("加了系統提示（--system_prompt）")
    if not protocol.is_own:
        found += _data_differences(flags, exam)
    if flags.exam_limit and len(rows) == flags.exam_limit:
        found.append(f"只抽了 {len(rows)} 題（--exam_limit）")
    if asking.num_fewshot and not protocol.takes_examples:
        found.append(f"給了 {asking.num_fewshot} 題示範（--num_fewshot），{theirs}不給")
    counts = Counter(row.subject for row in example_rows(flags, exam))
    if few := sum(counts[subject] < asking.num_fewshot for subject in {row.subject for row in rows}):
        found.append(f"{few} 科的示範不到 {asking.num_fewshot} 題")
    runs = flags.repeat or 1
    if runs < protocol.runs:
        found.append(f"只評測 {runs} 次（--repeat），{theirs}是 {protocol.runs} 次的平均")
    # what its published code does otherwise concerns a form scored as published
    return [*found, *(asking.form.remarks if method == asking.form.scoring else ())]


def _data_differences(flags: InferenceArgs, exam: Exam) -> list[str]:
    found = []
    if not exam.origin.startswith(f"{TMMLUPLUS} "):
        found.append(f"題庫是 {exam.origin}，公布的是 {TMMLUPLUS}")
    elif exam.skipped:
        found.append(f"略過了 {len(exam.skipped)} 列（--on_bad_rows skip）")
    elif not release_of(exam):
        found.append(f"不是全部 {len(SUBJECTS)} 科的題目（--subjects）")
    if exam.split(flags.split) != "test":
        found.append(f"評測的是 {flags.split}，公布的是 test")
    return found


def _reply_differences(flags: InferenceArgs, length: int, theirs: str) -> list[str]:
    """Return what flags change of how replies are generated; a length of 0 is none to differ from."""
    found = []
    if length and "max_new_tokens" in flags.given and flags.max_new_tokens != length:
        found.append(f"回答最多 {flags.max_new_tokens} 個 token（--max_new_tokens），{theirs}是 {length} 個")
    if changed := "、".join(f"--{name}" for name in _decoding(flags)):
        found.append(f"生成的方式由 {changed} 改過")
    return found


def _decoding(flags: InferenceArgs) -> dict[str, Any]:
    """Return the flags that change how replies are generated, but for their length."""
    names = (*GENERATION_FLAGS, "top_k")
    return {name: getattr(flags, name) for name in names if name in flags.given and name != "max_new_tokens"}


def _has_turns(asking: Asking, predictor: Predictor) -> bool:
    return asking.format == CHAT and asking.num_fewshot > 0 and predictor.is_causal
