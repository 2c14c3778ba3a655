"""--preview_masks: rows as they are hidden, for a person to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from finetune.data.question import Question
from finetune.objectives.batching import Example, MultipleChoiceExample
from finetune.prompts.exam import read_back, readable
from finetune.runtime.console import log

KINDS = {  # of examples, as they are shown
    "reply": "回答", "text": "文字", "answer": "作答", "mlm": "填空", "label": "分類", "choice": "選擇",
    "cloze": "選項填空",
}  # fmt: skip


def masks(objective, tokenizer, count: int) -> Iterator[str]:
    """Lines that show `count` rows with what is hidden in 【】, then what became of the hidden tokens of all.

    Args:
        objective: objectives.Objective or restoring.Restoration.
    """
    entries = [entry for entry in objective.epoch(0) if entry[0] == "mlm"]
    totals: Counter[str] = Counter()
    mask = tokenizer.mask_token_id
    for number, entry in enumerate(entries, 1):
        example = objective.example(*entry, 0)
        for at, token in zip(example.positions, example.targets, strict=True):
            seen = example.ids[at]
            totals["masked" if seen == mask else "kept" if seen == token else "changed"] += 1
        totals["tokens"] += len(example.ids) - 2
        if number <= count:
            yield f"第 {number} 列：{len(example.ids) - 2} 個 token，遮住 {len(example.positions)} 個"
            yield f"  {shown(tokenizer, example)}"
    hidden = totals["masked"] + totals["kept"] + totals["changed"]
    if hidden:
        kinds = (("換成 [MASK]", "masked"), ("換成別的字", "changed"), ("不變", "kept"))
        shares = "、".join(f"{name} {totals[key] / hidden:.1%}" for name, key in kinds)
        share = hidden / totals["tokens"]
        counts = f"遮住 {hidden:,}/{totals['tokens']:,} 個 token（{share:.1%}）"
        yield f"全部 {len(entries)} 列：{counts}；{shares}"


def shown(tokenizer, example: Example) -> str:
    """The text of an example with what is hidden in 【】."""
    whole = list(example.ids)
    for at, token in zip(example.positions, example.targets, strict=True):
        whole[at] = token
    text, runs = "", set(example.positions)
    pieces: list[tuple[bool, list[int]]] = []
    for at in range(1, len(whole) - 1):
        hidden = at in runs
        if not pieces or pieces[-1][0] != hidden:
            pieces.append((hidden, []))
        pieces[-1][1].append(at)
    for hidden, run in pieces:
        written = read_back(tokenizer, [whole[at] for at in run])
        text += f"【{written}】" if hidden else written
    return text


def readable_reply(tokenizer, example: Example) -> str:
    """What is asked, then what is to be said in 【】; of a long one its seam."""
    first = example.positions[0] + 1
    before = tokenizer.decode(list(example.ids[:first]))
    said = tokenizer.decode(list(example.ids[first : example.positions[-1] + 2]))
    return f"{before[-400:]}【{said[:400]}】"


def tell_of_lengths(what: str, objective) -> None:
    """How many rows were shortened to fit, and how many could not be."""
    asks = any(isinstance(row, Question) for row in objective.rows[:1])
    told = "回答" if objective.name == "sft" else "文字"
    cut, lost = ("題幹的中段", "連選項都放不下") if asks else (f"{told}的尾端", "提示本身就放不下")
    if objective.truncated:
        log(f"  {what}：{objective.truncated} 列太長，縮短了{cut}")
    if objective.too_long:
        log(f"  {what}：{len(objective.too_long)} 列{lost}，未採用（可加長 --max_length）")
    if refused := getattr(objective, "refused", ()):
        log(f"  {what}：{len(refused)} 列對話樣板不接受，未採用；第一列：{refused[0]}")
    for remark, count in getattr(objective, "remarks", {}).items():
        log(f"  {what}：{remark}（{count} 列）")


def as_seen(tokenizer, example: Example | MultipleChoiceExample) -> str:
    """An example as the model sees it, and what it must say."""
    if isinstance(example, MultipleChoiceExample):
        shown = (readable(tokenizer, ids, ()) for ids in example.rows)
        return "\n    ".join(shown) + f"\n    → 第 {example.answer + 1} 個選項"
    if example.by_token and tokenizer.mask_token_id is None:
        return readable_reply(tokenizer, example)
    wanted = [example.candidates[t] if example.candidates else t for t in example.targets]
    tokens = " ".join(tokenizer.convert_ids_to_tokens(wanted))
    return f"{readable(tokenizer, example.ids, example.positions)}\n    → {tokens}"
