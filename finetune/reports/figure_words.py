"""Words that several figures share: names of parts, kinds and tasks, each in Chinese and English."""

from __future__ import annotations

from finetune.models.shape import (
    ALIBI,
    DECODER,
    ENCODER,
    ENCODER_DECODER,
    LEARNED,
    POSITION,
    RELATIVE,
    ROTARY,
    SEGMENT,
    WORD,
    ModelShape,
)
from finetune.reports.svg import MARGIN, WIDTH, Box, Drawing

FAMILY_TITLES = {
    ENCODER: "編碼器 Encoder", DECODER: "解碼器 Decoder", ENCODER_DECODER: "編碼器－解碼器 Encoder-decoder",
}  # fmt: skip
SHORT_TITLES = {**FAMILY_TITLES, ENCODER_DECODER: "編碼器－解碼器 Enc-dec"}
TABLE_TITLES = {WORD: "詞嵌入 Word", POSITION: "位置 Position", SEGMENT: "句段 Segment"}
POSITION_TITLES = {
    LEARNED: "位置表", ROTARY: "旋轉位置 RoPE（不占參數）", RELATIVE: "相對位置 Relative",
    ALIBI: "距離偏差 ALiBi（不占參數）", "": "",
}  # fmt: skip
PART_TITLES = {
    "embeddings": "嵌入", "head": "輸出層", "body": "本體", "shared": "共用的層", "encoder": "編碼器",
    "decoder": "解碼器",
}  # fmt: skip
HEAD_TITLES = {  # by kind: Chinese, English, the tasks that train it
    "masked": ("填空", "Fill-mask", "exam 或 mlm"), "causal": ("接著寫", "Language model", "cpt 或 sft"),
    "choice": ("選擇題", "Multiple choice", "exam --objective choice"),
    "classifier": ("文字分類", "Classification", "classify"), "tagger": ("序列標註", "Tagging", "tag"),
    "extractor": ("抽取式問答", "Span QA", "span"), "seq2seq": ("文字轉換", "Seq2seq", "seq2seq"),
}  # fmt: skip


def count(number: int) -> str:
    """Write a number with its thousands apart."""
    return f"{number:,}"


def short(number: int) -> str:
    """Write a number of parameters in millions or billions: 102.27 M, 6.74 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def heading(drawing: Drawing, title: str, shape: ModelShape, source: str) -> float:
    """Write the title of a figure, the model and where its numbers come from; return the place below.

    Args:
        drawing: to write into.
        title: of the figure.
        shape: of the model.
        source: what configuration it is.
    """
    room = WIDTH - 2 * MARGIN
    drawing.text(MARGIN, 44, title, "title", room=room)
    drawing.text(MARGIN, 74, f"{shape.name}（{shape.class_name}）", "text", room=room)
    drawing.text(MARGIN, 98, f"設定 Configuration：{source}", "small", room=room)
    return 112


def share_bar(drawing: Drawing, place: Box, shares: list[tuple[str, int]]) -> None:
    """Draw a bar that is divided by numbers.

    Args:
        drawing: to draw into.
        place: of the whole bar.
        shares: (look, number) of each part, left to right.
    """
    total = sum(number for _, number in shares) or 1
    x = place.x
    for look, number in shares:
        width = place.width * number / total
        if width:
            drawing.bare(Box(x, place.y, width, place.height), look)
        x += width
