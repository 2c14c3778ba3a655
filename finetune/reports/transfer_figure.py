"""Figure of transfer learning: corpus, body, a new head for each task, the fine-tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.models.run_card import as_line
from finetune.models.shape import Head, ModelShape
from finetune.reports.family_figure import CARDS, OBJECTIVES, column_of
from finetune.reports.figure_words import HEAD_TITLES, count, heading, share_bar
from finetune.reports.svg import MARGIN, WIDTH, Box, Drawing

BODY = Box(MARGIN, 0, 188, 0)
ROW = 106  # height of a head
SHORTEST = 380  # height of the body
RIGHT = MARGIN + 188 + 76  # left edge of the heads
LOOKS = {"masked": "blue", "causal": "blue", "seq2seq": "blue"}  # heads that pre-training used


def transfer_figure(
    shape: ModelShape, source: str, body: int, heads: Sequence[Head], card: Any | None
) -> str:
    """Return the figure as an SVG file.

    Args:
        shape: of the model.
        source: what configuration it is.
        body: parameters of what all heads share.
        heads: the output layer of each task.
        card: the run card of the model; None for one that was not trained here.
    """
    said = "；".join(f"{HEAD_TITLES[head.kind][0]}的輸出層 {count(head.parameters)}" for head in heads)
    drawing = Drawing(
        f"遷移學習的流程 Transfer learning：{shape.name}",
        f"預訓練語料訓練出本體（{count(body)} 個參數），換上各任務的輸出層（{said}），微調後各成一個模型。",
    )
    y = heading(drawing, "遷移學習的流程 Transfer learning", shape, source)
    y = _corpus(drawing, y + 8, shape)
    y = _flow(drawing, y, shape, body, heads)
    y = _sum(drawing, y + 18, body, heads)
    if card is not None and card.lineage:
        drawing.text(MARGIN, y + 20, "這個模型的來歷 Lineage", "small")
        y = drawing.paragraph(MARGIN, y + 44, as_line(card.lineage), WIDTH - 2 * MARGIN, "note") - 14
    return drawing.render(y + 20)


def _corpus(drawing: Drawing, y: float, shape: ModelShape) -> float:
    """Draw what pre-training reads and learns; return the place below."""
    room = WIDTH - 2 * MARGIN
    corpus = Box(MARGIN, y, room, 62)
    words = "百科、網頁、書：大量文字，沒有標記 Unlabelled texts"
    drawing.box(corpus, "plain", [("① 預訓練語料 Pre-training corpus", "bold"), (words, "small")])
    objective = OBJECTIVES.get(shape.model_type, CARDS[column_of(shape)].objective)
    drawing.line([(BODY.middle, corpus.bottom + 3), (BODY.middle, corpus.bottom + 40)], "ink", "end")
    drawing.text(BODY.middle + 18, corpus.bottom + 28, objective, "small", room=room - BODY.width / 2 - 20)
    return corpus.bottom + 44


def _flow(drawing: Drawing, y: float, shape: ModelShape, body: int, heads: Sequence[Head]) -> float:
    """Draw the body, and an arrow to each head; return the place below."""
    tall = max(len(heads) * (ROW + 10) - 10, SHORTEST)
    top = y + (tall - len(heads) * (ROW + 10) + 10) / 2
    place = Box(BODY.x, y, BODY.width, tall)
    drawing.box(place, "green")
    room = place.width - 20
    layers = f"{shape.layers}＋{shape.decoder_layers} 層" if shape.decoder_layers else f"{shape.layers} 層"
    lines = [
        ("② 本體 Body", "head"), (shape.model_type, "text"), (f"{layers}，寬 {count(shape.hidden)}", "small"),
        (count(body), "bold"), ("參數 Parameters", "small"),
    ]  # fmt: skip
    middle = place.y + 36
    for number, (words, look) in enumerate(lines):
        drawing.text(place.middle, middle + 30 * number, words, look, anchor="middle", room=room)
    _slabs(drawing, Box(place.x + 22, middle + 142, place.width - 44, place.bottom - middle - 160), shape)
    for number, head in enumerate(heads):
        box = Box(RIGHT, top + number * (ROW + 10), WIDTH - MARGIN - RIGHT, ROW)
        bend = place.right + 36
        drawing.line(
            [(place.right, place.center), (bend, place.center), (bend, box.center), (box.x - 3, box.center)],
            "ink",
            "end",
        )
        _head(drawing, box, shape, head)
    return y + tall


def _slabs(drawing: Drawing, place: Box, shape: ModelShape) -> None:
    """Draw the layers of a body as slabs upon its embeddings, twelve for more."""
    layers = max(1, min(12, shape.layers + shape.decoder_layers))
    height = min(26.0, place.height / (layers + 2))
    for number in range(layers):
        drawing.box(
            Box(place.x, place.bottom - (number + 3) * height, place.width, height - 4), "paper", radius=4
        )
    drawing.box(Box(place.x, place.bottom - 2 * height + 2, place.width, 2 * height - 4), "red", radius=4)


def _head(drawing: Drawing, place: Box, shape: ModelShape, head: Head) -> None:
    chinese, english, task = HEAD_TITLES[head.kind]
    drawing.box(place, LOOKS.get(head.kind, "violet"))
    x, room = place.x + 14, place.width - 26
    drawing.text(x, place.y + 25, f"③ {chinese} {english}", "bold", room=room)
    drawing.text(x, place.y + 47, f"--task {task}" if len(task) < 12 else task, "code", room=room)
    new = "共用權重 tied" if not head.parameters else f"{count(head.parameters)} 參數"
    outputs = f"{count(shape.hidden)} → {count(head.outputs)}" if shape.hidden else count(head.outputs)
    drawing.text(x, place.y + 71, f"輸出層 {outputs}：{new}", "note", room=room)
    drawing.text(x, place.y + 95, f"微調後 Fine-tuned {count(head.whole)}", "tiny", room=room)


def _sum(drawing: Drawing, y: float, body: int, heads: Sequence[Head]) -> float:
    """Draw how much of a fine-tuned model comes from pre-training; return the place below."""
    room = WIDTH - 2 * MARGIN
    drawing.text(MARGIN, y + 16, "④ 微調後的模型＝本體＋新的輸出層", "head", room=room)
    new = max(
        (head for head in heads if head.kind not in LOOKS), key=lambda head: head.parameters, default=None
    )
    if new is None:
        return y + 30
    share_bar(
        drawing, Box(MARGIN, y + 30, room, 16), [("solid-green", body), ("solid-violet", new.parameters)]
    )
    share = f"{100 * body / new.whole:.2f} %"
    words = f"{HEAD_TITLES[new.kind][0]}：{share} 的參數由預訓練而來 From pre-training，其餘隨機初始化"
    drawing.text(MARGIN, y + 70, words, "small", room=room)
    return y + 78
