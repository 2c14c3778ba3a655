"""Examples as text for people: masked rows of --preview_masks, --show_examples, rows that were shortened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetune.data.question import Question
from finetune.objectives.batching import Example, MultipleChoiceExample
from finetune.objectives.objective import Objective
from finetune.prompts.exam import format_tokens, read_back
from finetune.runtime.console import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = {  # kind of an example -> its title when shown
    "reply": "回答", "text": "文字", "answer": "作答", "mlm": "填空", "label": "分類", "choice": "選擇",
    "cloze": "選項填空", "tag": "標註", "span": "問答", "pair": "轉換",
}  # fmt: skip


def preview_masks(objective: Objective, tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[str]:
    """Yield lines that show `count` rows with masked tokens in 【】, then what became of the masked tokens.

    Args:
        objective: ExamObjective or MaskedLMObjective; of another there is nothing to show.
        tokenizer: the model's tokenizer.
        count: number of rows shown; the totals are over all rows.
    """
    entries = [entry for entry in objective.epoch(0) if entry[0] == "mlm"]
    totals: Counter[str] = Counter()
    mask = tokenizer.mask_token_id
    for number, entry in enumerate(entries, 1):
        example = objective.example(*entry, 0)
        assert isinstance(example, Example)  # as all of kind mlm are
        for at, token in zip(example.positions, example.targets, strict=True):
            seen = example.ids[at]
            totals["masked" if seen == mask else "kept" if seen == token else "changed"] += 1
        totals["tokens"] += len(example.ids) - 2
        if number <= count:
            yield f"第 {number} 列：{len(example.ids) - 2} 個 token，遮住 {len(example.positions)} 個"
            yield f"  {mark_masked(tokenizer, example)}"
    chosen = totals["masked"] + totals["kept"] + totals["changed"]
    if chosen:
        titles = (("換成 [MASK]", "masked"), ("換成別的 token", "changed"), ("不變", "kept"))
        shares = "、".join(f"{title} {totals[key] / chosen:.1%}" for title, key in titles)
        share = chosen / totals["tokens"]
        counts = f"遮住 {chosen:,}/{totals['tokens']:,} 個 token（{share:.1%}）"
        yield f"全部 {len(entries)} 列：{counts}；{shares}"


def mark_masked(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """Return the text of an example with its masked tokens in 【】."""
    whole = list(example.ids)
    for at, token in zip(example.positions, example.targets, strict=True):
        whole[at] = token
    text, positions = "", set(example.positions)
    runs: list[tuple[bool, list[int]]] = []
    for at in range(1, len(whole) - 1):
        is_masked = at in positions
        if not runs or runs[-1][0] != is_masked:
            runs.append((is_masked, []))
        runs[-1][1].append(at)
    for is_masked, run in runs:
        written = read_back(tokenizer, [whole[at] for at in run])
        text += f"【{written}】" if is_masked else written
    return text


def readable_reply(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """Return the prompt, then the reply in 【】; of a long example at most 400 characters of each."""
    first = example.positions[0] + 1
    prompt = tokenizer.decode(list(example.ids[:first]))
    reply = tokenizer.decode(list(example.ids[first : example.positions[-1] + 2]))
    return f"{prompt[-400:]}【{reply[:400]}】"


def log_row_lengths(title: str, objective: Objective) -> None:
    """Log how many rows were shortened to fit, how many were left out and why.

    Args:
        title: title of the rows, e.g. 訓練.
        objective: made of them.
    """
    is_exam = any(isinstance(row, Question) for row in objective.rows[:1])
    unit = "回答" if objective.name == "sft" else "文字"
    cut, misfit = ("題幹的中段", "連選項都放不下") if is_exam else (f"{unit}的尾端", "提示本身就放不下")
    misfit = "問題太長，放不下文章" if objective.name == "span" else misfit
    if objective.truncated:
        log(f"  {title}：{objective.truncated} 列太長，縮短了{cut}")
    if objective.too_long:
        log(f"  {title}：{len(objective.too_long)} 列{misfit}，未採用（可加長 --max_length）")
    if rejected := objective.rejected_by_template:
        log(f"  {title}：{len(rejected)} 列對話樣板不接受，未採用；第一列：{rejected[0]}")
    for remark, count in objective.remarks.items():
        log(f"  {title}：{remark}（{count} 列）")


def format_example(tokenizer: PreTrainedTokenizerBase, example: Example | MultipleChoiceExample) -> str:
    """Return an example as the model sees it, and its targets."""
    if isinstance(example, MultipleChoiceExample):
        rows = (format_tokens(tokenizer, ids, ()) for ids in example.rows)
        return "\n    ".join(rows) + f"\n    → 第 {example.answer + 1} 個選項"
    if example.by_token and tokenizer.mask_token_id is None:
        return readable_reply(tokenizer, example)
    targets = [example.candidates[t] if example.candidates else t for t in example.targets]
    tokens = " ".join(tokenizer.convert_ids_to_tokens(targets))
    return f"{format_tokens(tokenizer, example.ids, example.positions)}\n    → {tokens}"
