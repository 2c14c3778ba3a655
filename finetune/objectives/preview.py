"""--preview_masks: rows as they are hidden, for a person to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from finetune.objectives.batching import Example
from finetune.prompts.exam import read_back


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
