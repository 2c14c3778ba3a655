"""Figure of which layers learn: all, some, none but the head, LoRA; and what a run really trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from finetune.models.layer_choices import ALL, LORA, NONE, RUN, SOME, LayerChoice
from finetune.models.layer_groups import DECODER, format_ranges
from finetune.models.run_card import TASK_TITLES
from finetune.models.shape import ModelShape
from finetune.reports.figure_words import PART_TITLES, count, heading, share_bar
from finetune.reports.svg import MARGIN, WIDTH, Box, Drawing, fitted, text_length

TITLES = {ALL: ("全部", "All"), SOME: ("一部分", "Some"), NONE: ("全凍結", "None"), LORA: ("LoRA", "")}
UNDER = {
    ALL: "每一層都學", SOME: "上面幾層學", NONE: "只有輸出層學", LORA: "旁邊的小矩陣學",
}  # fmt: skip
TALL = 344  # of a stack of parts
STACK = 168  # width of the stack of a run
MOST = 12  # layers that are drawn one by one
TRAINED, FROZEN = "green", "none"


def layers_figure(
    shape: ModelShape, source: str, choices: Sequence[LayerChoice], note: str, card: Any | None
) -> str:
    """Return the figure as an SVG file.

    Args:
        shape: of the model whose layers are counted.
        source: what configuration it is.
        choices: of what to train, side by side; RUN is drawn below the others.
        note: a sentence on what is counted.
        card: the run card of the model; None for one that was not trained here.
    """
    panels = [choice for choice in choices if choice.name != RUN]
    said = "；".join(map(_said, panels))
    drawing = Drawing(f"哪些層在學 Which layers learn：{shape.name}", f"{shape.name}。{said}。")
    y = heading(drawing, "哪些層在學 Which layers learn", shape, source)
    y = drawing.paragraph(MARGIN, y + 10, note, WIDTH - 2 * MARGIN, "small")
    y = _legend(drawing, y + 4, any(one.name == LORA for one in panels))
    width = (WIDTH - 2 * MARGIN - 12 * (len(panels) - 1)) / max(2, len(panels))
    bottom = 0.0
    for place, choice in enumerate(panels):
        bottom = max(bottom, _panel(drawing, Box(MARGIN + place * (width + 12), y, width, 0), choice))
    run = next((choice for choice in choices if choice.name == RUN), None)
    if card is not None:
        bottom = _run(drawing, bottom + 20, run, card)
    return drawing.render(bottom + 12)


def _said(choice: LayerChoice) -> str:
    trained, frozen = count(choice.trained_parameters), count(choice.frozen_parameters)
    return f"{' '.join(TITLES[choice.name]).strip()}：訓練 {trained}，凍結 {frozen}"


def _legend(drawing: Drawing, y: float, with_lora: bool) -> float:
    x = float(MARGIN)
    entries = [(TRAINED, "訓練 Trained"), (FROZEN, "凍結 Frozen")]
    if with_lora:
        entries.append(("violet", "LoRA 小矩陣 Adapters"))
    for look, words in entries:
        drawing.box(Box(x, y - 13, 18, 16), look, radius=3)
        drawing.text(x + 26, y, words, "small")
        x += 200
    return y + 22


def _panel(drawing: Drawing, place: Box, choice: LayerChoice) -> float:
    """Draw one choice; return the place below it."""
    chinese, english = TITLES[choice.name]
    drawing.text(
        place.middle, place.y + 20, f"{chinese} {english}".strip(), "head", anchor="middle", room=place.width
    )
    under = "解碼器學" if choice.name == SOME and DECODER in choice.sizes else UNDER[choice.name]
    drawing.text(place.middle, place.y + 44, under, "small", anchor="middle", room=place.width)
    stack = Box(place.x, place.y + 56, place.width, TALL)
    _stack(drawing, stack, choice)
    y = stack.bottom + 24
    total = sum(choice.sizes.values()) or 1
    frozen = choice.frozen_parameters
    bar = Box(place.x, y - 10, place.width, 12)
    trained = choice.trained_parameters
    share_bar(drawing, bar, [(f"solid-{_look(choice)}", trained), (FROZEN, frozen)])
    drawing.text(
        place.x,
        y + 24,
        f"訓練 {100 * trained / (trained + frozen or total):.3g} %",
        "small",
        room=place.width,
    )
    drawing.number(place.x, y + 47, trained, place.width, colour=_look(choice))
    drawing.text(place.x, y + 73, "凍結 Frozen", "small", room=place.width)
    drawing.number(place.x, y + 96, frozen, place.width)
    y += 124
    words = choice.flags or ("（不加旗標）",)
    joined = " ".join(words)
    for word in (joined,) if text_length(joined, "code") <= place.width else words:
        drawing.text(place.x, y, word, "code", room=place.width)
        y += 20
    return y


def _look(choice: LayerChoice) -> str:
    return "violet" if _adapted(choice) else TRAINED


def _adapted(choice: LayerChoice) -> bool:
    """Return whether some part is trained in part: by its adapters."""
    return any(0 < choice.trained[part] < size for part, size in choice.sizes.items())


@dataclass(frozen=True)
class _Slab:
    """What is drawn as one box of a stack.

    Attributes:
        name: of the part, or a range of layers.
        look: of the box.
        layers: how many are in it; 0 for a part that is no layer.
        opens: first and last step from which its parts are trained; 0 is the beginning.
    """

    name: str
    look: str
    layers: int
    opens: tuple[int, int]


def _slabs(choice: LayerChoice, most: int) -> list[_Slab]:
    """Return the boxes of a stack, top to bottom: alike layers of a tall stack in one, at most `most`."""
    layers = sum(part.isdigit() for part in choice.sizes)

    def look(part: str) -> tuple[bool | str, str, int]:
        size, trained = choice.sizes[part], choice.trained[part]
        state = FROZEN if not trained else TRAINED if trained == size else "violet"
        together = part.isdigit() and layers > MOST
        return together or part, state, choice.steps.get(part, 0)

    found = []
    for (_, state, step), run in groupby((part for part in choice.sizes if choice.sizes[part]), key=look):
        parts = list(run)
        count_of_layers = len(parts) if parts[0].isdigit() else 0
        found.append(_Slab(format_ranges(parts), state, count_of_layers, (step, step)))
    found.reverse()
    return found if len(found) <= most else [*found[:3], _joined(found[3:-2]), *found[-2:]]


def _joined(slabs: Sequence[_Slab]) -> _Slab:
    """Return neighbours as one box, top to bottom."""
    low, high = slabs[-1].name.split("–")[0], slabs[0].name.split("–")[-1]
    opens = [step for slab in slabs for step in slab.opens]
    return _Slab(f"{low}–{high}", slabs[0].look, sum(slab.layers for slab in slabs), (min(opens), max(opens)))


def _stack(drawing: Drawing, place: Box, choice: LayerChoice, steps: bool = False) -> None:
    """Draw the parts of a model on top of one another, the head above.

    Args:
        drawing: to draw into.
        place: of the stack.
        choice: what is trained.
        steps: write when a part is unfrozen; then no box is too low for its words.
    """
    slabs = _slabs(choice, 8 if steps else MOST + 2)
    inner = sum(slab.layers > 0 for slab in slabs)
    fixed = len(slabs) - inner
    each = 44 if inner else place.height / max(1, fixed) - 5
    lowest = 26 if inner <= 8 else 8
    room = place.height - fixed * (each + 5) - 3 * inner - lowest * inner
    y, layers = place.y, sum(slab.layers for slab in slabs) or 1
    for slab in slabs:
        height = lowest + room * slab.layers / layers if slab.layers else each
        words = _words(slab, steps)
        lines = [(fitted(words, place.width - 8, "tiny"), "tiny")] if height >= 15 else []
        drawing.box(Box(place.x, y, place.width, height), slab.look, lines, 5)
        y += height + (3 if slab.layers else 5)


def _words(slab: _Slab, steps: bool) -> str:
    if steps and slab.opens[1]:
        return f"{PART_TITLES.get(slab.name, slab.name)}：{'–'.join(map(str, sorted(set(slab.opens))))} 步起"
    if not slab.layers:
        return f"{PART_TITLES.get(slab.name, slab.name)} {slab.name}"
    return f"{slab.name}（× {slab.layers}）" if slab.layers > 1 else slab.name


# ---- what a run trained ------------------------------------------------------------------------------------


def _run(drawing: Drawing, y: float, run: LayerChoice | None, card: Any) -> float:
    """Draw what the run card records; return the place below."""
    frame = Box(MARGIN - 8, y, WIDTH - 2 * MARGIN + 16, TALL + 70 if run else 190)
    drawing.box(frame, "plain", radius=12)
    drawing.text(MARGIN + 6, y + 32, "這個模型實際訓練的 As it was trained", "head")
    x = float(MARGIN + 6)
    if run is not None:
        _stack(drawing, Box(x, y + 50, STACK, TALL), run, steps=True)
        x += STACK + 24
    y += 72
    room = frame.right - x - 12
    for label, words, look in _facts(run, card):
        drawing.text(x, y, label, "small", room=room)
        drawing.text(x, y + 24, words, look, room=room)
        y += 58
    return frame.bottom


def _facts(run: LayerChoice | None, card: Any) -> list[tuple[str, str, str]]:
    """Return (label, words, look) of each fact."""
    flags: Mapping[str, Any] = card.flags
    title = TASK_TITLES.get(card.task, card.task)
    facts = [("任務 Task", f"{title} --task {card.task}，{count(card.step)} 步", "bold")]
    if run is not None:
        facts.append(("旗標 Flags", " ".join(run.flags) or "（訓練全部，不加旗標）", "code"))
        facts.append(("訓練 Trained（照這些旗標）", count(run.trained_parameters), "bold"))
        facts.append(("凍結 Frozen", count(run.frozen_parameters), "bold"))
    elif given := [
        f"--{name} {flags[name]}" for name in ("freeze", "train_only", "lora_rank") if flags.get(name)
    ]:
        facts.append(("旗標 Flags", " ".join(given), "code"))
    if recorded := {name: card.parameters[name] for name in ("trained", "all") if name in card.parameters}:
        words = "／".join(count(number) for number in recorded.values())
        facts.append(("run_card.json 記載：訓練／全部", words, "bold"))
    return facts
