"""Figure of the families side by side: encoder, decoder and encoder-decoder, each with its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.models.shape import T5_LIKE, ModelShape
from finetune.reports.figure_words import FAMILY_TITLES, SHORT_TITLES, count
from finetune.reports.svg import MARGIN, WIDTH, Box, Drawing, lines_of

BERT, GPT, T5, BART = "bert", "gpt", "t5", "bart"
COLUMNS = (BERT, GPT, T5, BART)
CELLS = 5  # tokens on each side of a pattern of attention
CELL = 13
FULL, CAUSAL = "full", "causal"
SPAN_CORRUPTION = "把幾段文字各換成一個記號，寫回那幾段 Span corruption"
MASKED = "遮住 15 % 的字，猜回來 Masked language modelling"
OBJECTIVES = {  # by model_type, where it is not that of the column
    "bert": "遮住 15 % 的字猜回來（MLM），並判斷兩句是否相連（NSP）",
    "albert": "遮住一些字猜回來（MLM），並判斷兩句的先後（SOP）",
    "electra": "認出哪些字被換過 Replaced token detection",
    "mbart": "打亂多種語言的句子，寫回原文 Denoising", "pegasus": "拿掉重要的句子，寫回來 Gap sentences",
    "marian": "平行語料的翻譯 Translation",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What a card says of a family.

    Attributes:
        title: of the family.
        look: colour, one of svg.LOOKS.
        patterns: (label, FULL or CAUSAL) of each attention.
        reads: what it reads.
        objective: of pre-training.
        used: what it is used for.
        tasks: values of --task.
    """

    title: str
    look: str
    patterns: Sequence[tuple[str, str]]
    reads: str
    objective: str
    used: str
    tasks: str


BOTH = (("編碼器", FULL), ("解碼器", CAUSAL), ("交叉", FULL))
WRITES = "編碼器讀完整的輸入，解碼器看著它一字一字寫出輸出"
CARDS = {
    BERT: Column(
        "BERT", "blue", (("看兩邊", FULL),), "整句，每個字看得到左右兩邊", MASKED,
        "填空、分類、標註、抽取式問答、向量", "exam、mlm、classify、tag、span",
    ),
    GPT: Column(
        "GPT", "green", (("只看左邊", CAUSAL),), "由左到右，每個字只看得到左邊",
        "猜下一個字 Next-token prediction", "接著寫、對話、答題", "cpt、sft",
    ),
    T5: Column(
        "T5", "amber", BOTH, WRITES, SPAN_CORRUPTION, "摘要、翻譯、改寫：都當成文字轉換", "seq2seq"
    ),
    BART: Column(
        "BART", "violet", BOTH, WRITES, "弄壞文字（整段遮住、打亂句子），寫回原文 Denoising",
        "摘要、翻譯、改寫；也會填空", "seq2seq、exam、mlm",
    ),
}  # fmt: skip


def column_of(shape: ModelShape) -> str:
    """Return the column that a model belongs to."""
    if shape.decoder_layers:
        is_t5 = shape.model_type in T5_LIKE or shape.model_type in ("longt5", "switch_transformers")
        return T5 if is_t5 else BART
    return GPT if shape.family == "decoder" else BERT


def family_figure(shapes: dict[str, ModelShape], sources: dict[str, str]) -> str:
    """Return the figure of all columns as an SVG file.

    Args:
        shapes: model of each column.
        sources: what configuration each is.
    """
    words = "；".join(
        f"{CARDS[name].title}（{FAMILY_TITLES[shape.family]}）：{CARDS[name].reads}，"
        f"{count(shape.parameters)} 個參數"
        for name, shape in shapes.items()
    )
    drawing = Drawing("三種架構 The families side by side", f"{words}。")
    drawing.text(MARGIN, 44, "三種架構並列 The families side by side", "title")
    drawing.text(MARGIN, 74, "格子：每一列是一個字，有色的是它看得到的字 Attention", "small")
    width = (WIDTH - 2 * MARGIN - 16) / 2
    y = 92.0
    for row in (COLUMNS[:2], COLUMNS[2:]):
        height = max(_height(shapes[name], sources[name], name, width) for name in row)
        for place, name in enumerate(row):
            box = Box(MARGIN + place * (width + 16), y, width, height)
            _card(drawing, box, shapes[name], sources[name], name)
        y += height + 16
    return drawing.render(y + 8)


def _rows(shape: ModelShape, source: str, name: str) -> list[tuple[str, str]]:
    """Return (label, words) of a card."""
    card = CARDS[name]
    layers = f"{shape.layers} ＋ {shape.decoder_layers} 層" if shape.decoder_layers else f"{shape.layers} 層"
    heads = f"，{shape.heads} 頭" if shape.heads else ""
    sizes = f"{layers}，寬 {count(shape.hidden)}{heads}\n詞彙 {count(shape.vocabulary)}"
    return [
        ("讀什麼 Reads", card.reads),
        ("預訓練 Pre-training", OBJECTIVES.get(shape.model_type, card.objective)),
        ("用來 Used for", card.used),
        ("任務 --task", card.tasks),
        ("大小 Size", sizes),
        ("設定 Configuration", source),
    ]


def _height(shape: ModelShape, source: str, name: str, width: float) -> float:
    lines = sum(len(lines_of(words, width - 28, "note")) for _, words in _rows(shape, source, name))
    return 60 + 110 + 6 * 26 + lines * 22 + 66


def _card(drawing: Drawing, place: Box, shape: ModelShape, source: str, name: str) -> None:
    card = CARDS[name]
    drawing.box(place, "plain", radius=12)
    drawing.box(Box(place.x, place.y, place.width, 48), card.look, radius=12)
    drawing.text(place.x + 14, place.y + 32, card.title, "title")
    drawing.text(place.right - 12, place.y + 31, SHORT_TITLES[shape.family], "small", anchor="end", room=200)
    x, y = place.x + 14, place.y + 60
    for label, pattern in card.patterns:
        _pattern(drawing, x, y, pattern, card.look)
        drawing.text(x + CELL * CELLS / 2, y + CELL * CELLS + 20, label, "small", anchor="middle")
        x += CELL * CELLS + 36
    y += 118
    for label, words in _rows(shape, source, name):
        drawing.text(place.x + 14, y, label, "small")
        y = drawing.paragraph(place.x + 14, y + 21, words, place.width - 28, "note") + 4
    bottom = place.bottom - 46
    drawing.text(place.x + 14, bottom, shape.name, "bold", room=place.width - 28)
    total = f"{count(shape.parameters)} 參數"
    drawing.text(place.x + 14, bottom + 28, total, "head", colour=card.look, room=place.width - 28)


def _pattern(drawing: Drawing, x: float, y: float, pattern: str, look: str) -> None:
    """Draw which tokens (columns) each token (row) reads."""
    for row in range(CELLS):
        for column in range(CELLS):
            seen = pattern == FULL or column <= row
            cell = Box(x + CELL * column, y + CELL * row, CELL - 2, CELL - 2)
            drawing.bare(cell, f"solid-{look}" if seen else "none")
