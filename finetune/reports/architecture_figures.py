"""Figures of one architecture: an encoder as BERT or a decoder as GPT, tokens below and output above."""

from __future__ import annotations

from collections.abc import Callable

from finetune.models.shape import AFTER, BEFORE, DECODER, LEARNED, ROTARY, ModelShape
from finetune.reports.figure_words import POSITION_TITLES, TABLE_TITLES, count, heading, share_bar
from finetune.reports.svg import MARGIN, WIDTH, Box, Drawing

READ = {  # what goes in; what comes out above each token
    False: (("[CLS]", "今", "天", "天", "[MASK]", "好", "[SEP]"), ("", "", "", "", "氣", "", "")),
    True: (("今", "天", "天", "氣", "很", "好", "，"), ("天", "天", "氣", "很", "好", "，", "我")),
}
ASKING = 4  # the token whose attention is drawn strongly
LEFT = Box(MARGIN + 14, 0, 396, 0)  # the column of the model
BESIDE = MARGIN + 14 + 396 + 30  # left edge of the column of numbers
ROOM = WIDTH - MARGIN - BESIDE
Sublayer = Callable[[Drawing, Box, ModelShape], None]


def architecture_figure(shape: ModelShape, source: str) -> str:
    """Return an encoder or a decoder as an SVG file.

    Args:
        shape: of a model that is one stack of layers.
        source: what configuration it is, for the figure.
    """
    causal = shape.family == DECODER
    title = "GPT：解碼器 Decoder" if causal else "BERT：編碼器 Encoder"
    looks = "每個字只看得到左邊，用來寫出下一個字" if causal else "每個字看得到左右兩邊，用來填空與理解"
    layers, total = f"{shape.layers} 層", count(shape.parameters)
    description = (
        f"{shape.name}：{layers}，寬 {shape.hidden}，{shape.heads} 個注意力頭，詞彙 {shape.vocabulary}，"
        f"共 {total} 個參數。由下而上：詞嵌入、{layers}自注意力與前饋網路、輸出層。{looks}。"
    )
    drawing = Drawing(f"{title}：{shape.name}", description)
    y = heading(drawing, title, shape, source)
    y = _tokens(drawing, y + 14, READ[causal][1], "violet", READ[causal][0])
    y = _head(drawing, y, shape)
    y = _layer(drawing, y, shape)
    y = _embeddings(drawing, y, shape)
    y = _tokens(drawing, y, READ[causal][0], "plain")
    return drawing.render(_total(drawing, y + 20, shape))


def _up(drawing: Drawing, y: float) -> float:
    """Draw an arrow that leads up to `y`; return the place below it."""
    drawing.line([(LEFT.middle, y + 26), (LEFT.middle, y + 4)], "ink", "end")
    return y + 30


def _tokens(
    drawing: Drawing, y: float, words: tuple[str, ...], look: str, beside: tuple[str, ...] = ()
) -> float:
    """Draw a row of tokens, empty ones left out; return the place below.

    Args:
        drawing: to draw into.
        y: upper edge.
        words: the tokens.
        look: of their boxes.
        beside: the tokens of the other row, where those decide how wide each place is.
    """
    marks = [len(word) > 2 for word in beside or words]
    wide = 68.0
    narrow = (LEFT.width - 6 * 6 - wide * sum(marks)) / (7 - sum(marks))
    x = LEFT.x
    for word, is_mark in zip(words, marks, strict=True):
        box = Box(x, y, wide if is_mark else narrow, 34)
        if word:
            colour = "amber" if word == "[MASK]" else look
            drawing.box(box, colour, [(word, "text" if len(word) < 3 else "tiny")], 6)
        x = box.right + 6
    is_output = look == "violet"
    drawing.text(BESIDE, y + 23, "猜的字 Predictions" if is_output else "讀的字 Tokens", "small", room=ROOM)
    return _up(drawing, y + 36) if is_output else y + 34


def _head(drawing: Drawing, y: float, shape: ModelShape) -> float:
    box = Box(LEFT.x, y, LEFT.width, 64)
    outputs = (
        f"{count(shape.hidden)} → {count(shape.vocabulary)}" if shape.hidden else count(shape.vocabulary)
    )
    tied = "，權重同詞嵌入 tied" if shape.tied else ""
    drawing.box(box, "violet", [("輸出層 Head", "bold"), (f"{outputs}{tied}", "small")])
    _beside(drawing, box.center, "輸出層 Head", shape.sizes["head"])
    return _up(drawing, box.bottom)


def _beside(drawing: Drawing, y: float, label: str, number: int, note: str = "") -> None:
    """Write a number of parameters in the column beside the model, centred at a height."""
    y -= 14 if note else 4
    drawing.text(BESIDE, y, label, "small", room=ROOM)
    drawing.text(BESIDE, y + 23, count(number), "bold", room=ROOM)
    if note:
        drawing.text(BESIDE, y + 45, note, "small", room=ROOM)


# ---- a layer -----------------------------------------------------------------------------------------------

GAP = 14  # between the boxes of a layer
BRANCH = 30  # below a sublayer, where its input branches off


def _layer(drawing: Drawing, y: float, shape: ModelShape) -> float:
    """Draw one layer, with what is behind it if there are several."""
    norm = 30 + GAP if shape.norm_place == BEFORE else 0
    frame = Box(LEFT.x - 14, y, LEFT.width + 28, 16 + 2 * (30 + GAP + norm + BRANCH) + 66 + 158)
    for behind in (10, 5):
        if shape.layers > 1:
            drawing.box(
                Box(frame.x + behind, frame.y - behind, frame.width, frame.height), "plain", radius=12
            )
    drawing.box(frame, "paper", radius=12)
    below = _sublayer(drawing, Box(LEFT.x + 22, y + 16, LEFT.width - 44, 66), _forward, shape)
    _sublayer(drawing, Box(LEFT.x + 22, below, LEFT.width - 44, 158), _attention, shape)
    _layer_numbers(drawing, frame, shape)
    drawing.line([(LEFT.middle, frame.bottom + 28), (LEFT.middle, frame.bottom)], "ink")
    return frame.bottom + 30


def _sublayer(drawing: Drawing, room: Box, draw: Sublayer, shape: ModelShape) -> float:
    """Draw attention or feed-forward, the sum above it and what leads into it; return the place below.

    Args:
        drawing: to draw into.
        room: upper left corner and width of all of it, height of the sublayer alone.
        draw: draws the sublayer into its box.
        shape: of the model.
    """
    middle, add = LEFT.middle, Box(room.x, room.y, room.width, 30)
    title = f"相加與正規化 Add & {shape.norm}" if shape.norm_place == AFTER else "相加 Add"
    drawing.box(add, "amber", [(title, "small")], 6)
    place = Box(room.x, add.bottom + GAP, room.width, room.height)
    draw(drawing, place, shape)
    drawing.line([(middle, place.y - 1), (middle, add.bottom + 3)], "ink", "end")
    bottom = place.bottom
    if shape.norm_place == BEFORE:
        norm = Box(room.x, bottom + GAP, room.width, 30)
        drawing.box(norm, "amber", [(f"先正規化 {shape.norm}", "small")], 6)
        drawing.line([(middle, norm.y - 1), (middle, bottom + 3)], "ink", "end")
        bottom = norm.bottom
    drawing.line([(middle, bottom + BRANCH), (middle, bottom + 3)], "ink", "end")
    branch, side = bottom + BRANCH / 2, LEFT.x + 4  # past the sublayer: its input is added to its output
    drawing.line(
        [(middle, branch), (side, branch), (side, add.center), (room.x - 2, add.center)], "ink", "end"
    )
    return bottom + BRANCH


def _forward(drawing: Drawing, place: Box, shape: ModelShape) -> None:
    widths = " → ".join(count(n) for n in (shape.hidden, shape.feed_forward, shape.hidden) if n)
    gate = "，門控" if shape.gated else ""
    experts = f"，{shape.experts} 個專家 MoE" if shape.experts > 1 else ""
    how = f"{widths}{'，' if shape.activation else ''}{shape.activation}{gate}{experts}"
    drawing.box(place, "green", [("前饋網路 Feed-forward", "bold"), (how, "small")])


def _attention(drawing: Drawing, place: Box, shape: ModelShape) -> None:
    """Draw self-attention: which tokens each one reads."""
    causal = shape.family == DECODER
    drawing.box(place, "blue")
    kind = "因果自注意力 Causal attention" if causal else "自注意力 Self-attention"
    drawing.text(place.middle, place.y + 24, kind, "bold", anchor="middle", room=place.width - 12)
    shared = f"，K、V 共 {shape.kv_heads} 組 GQA" if shape.kv_heads != shape.heads else ""
    heads = f"{shape.heads} 個頭 × {shape.head_width} 維{shared}"
    drawing.text(place.middle, place.y + 46, heads, "small", anchor="middle", room=place.width - 12)
    step = (place.width - 50) / 6
    spots = [place.x + 25 + step * number for number in range(7)]
    top, bottom = place.y + 66, place.y + 116
    reads = {asking: range(asking + 1) if causal else range(7) for asking in range(7)}
    for asking in range(7):
        for read in reads[asking]:
            if asking != ASKING:
                drawing.line([(spots[read], bottom), (spots[asking], top)], "faint")
    for read in reads[ASKING]:
        drawing.line([(spots[read], bottom - 6), (spots[ASKING], top + 7)], "blue")
    for number, x in enumerate(spots):
        drawing.dot(x, top, "solid-blue" if number == ASKING else "paper")
        drawing.dot(x, bottom, "solid-blue" if number in reads[ASKING] else "paper")
    y = place.bottom - 14
    words = "只看左邊 Left only" if causal else "左右都看 Bidirectional"
    drawing.text(place.middle, y, words, "small", anchor="middle")
    half = 98
    drawing.line([(place.middle - half, y - 6), (place.x + 16, y - 6)], "blue", "end")
    if not causal:
        drawing.line([(place.middle + half, y - 6), (place.right - 16, y - 6)], "blue", "end")


def _layer_numbers(drawing: Drawing, frame: Box, shape: ModelShape) -> None:
    sizes = shape.layer_sizes
    y = frame.y + 40
    drawing.text(BESIDE, y, f"× {shape.layers}", "title", colour="blue", room=ROOM)
    drawing.text(BESIDE, y + 24, "層 Layers", "small", room=ROOM)
    total = sum(sizes)
    if shape.shared:
        drawing.text(BESIDE, y + 60, "各層共用一組權重", "small", room=ROOM)
        drawing.text(BESIDE, y + 84, count(total), "bold", room=ROOM)
        return
    usual = max(set(sizes), key=sizes.count)
    each = "每層 Each" if len(set(sizes)) == 1 else "多數的層 Most, each"
    _beside(drawing, y + 64, each, usual)
    _beside(drawing, y + 128, "合計 All layers", total)


# ---- below -------------------------------------------------------------------------------------------------


def _embeddings(drawing: Drawing, y: float, shape: ModelShape) -> float:
    rows = [
        f"{TABLE_TITLES[table.role]}　{count(table.rows)} × {count(table.width)}" for table in shape.tables
    ]
    if shape.positions not in (LEARNED, "") or not rows:
        rows.append(POSITION_TITLES[shape.positions] or "詞嵌入 Embeddings")
    place = Box(LEFT.x, y, LEFT.width, 14 + 38 * len(rows))
    drawing.box(place, "red")
    for number, words in enumerate(rows):
        box = Box(place.x + 34, place.y + 9 + 38 * number, place.width - 46, 32)
        drawing.box(box, "paper", [(words, "small")], 6)
        if number:
            drawing.text(place.x + 17, box.center + 6, "＋", "text", anchor="middle")
    note = f"最多 {count(shape.room)} tokens" if shape.room and shape.positions == ROTARY else ""
    _beside(drawing, place.center, "嵌入 Embeddings", shape.sizes["embeddings"], note)
    return _up(drawing, place.bottom)


def _total(drawing: Drawing, y: float, shape: ModelShape) -> float:
    """Draw the sum of all parameters and how it is divided; return the height of the figure."""
    room = WIDTH - 2 * MARGIN
    drawing.text(MARGIN, y + 22, f"合計 {count(shape.parameters)} 個參數 Parameters", "head", room=room)
    parts = list(shape.ranges.items())
    looks = {"embeddings": "solid-red", "head": "solid-violet"}
    share_bar(
        drawing,
        Box(MARGIN, y + 36, room, 16),
        [(looks.get(part, "solid-blue"), size) for part, size in parts],
    )
    titles = {"embeddings": "嵌入", "head": "輸出層"}
    words = "　".join(
        f"{titles.get(part, '各層')} {100 * size / shape.parameters:.1f} %" for part, size in parts
    )
    drawing.text(MARGIN, y + 76, words, "small", room=room)
    return y + 98
