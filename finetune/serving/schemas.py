"""Bodies of the requests of our own paths, and what GET /v1/model answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from finetune.cli.inference_args import LONGEST_WORD, MOST_WORDS
from finetune.prompts.scoring_methods import CAUSAL, CHOICE, METHODS, ORDERS, SHORT
from finetune.runtime.errors import listed, nearest, shown

MOST_OPTIONS = 10
SCORINGS = ("auto", *dict.fromkeys((*METHODS, *SHORT, *CAUSAL, CHOICE)))  # of all kinds
ZH = "x-description-zh"  # beside `description`, for /docs in Chinese
Text = Annotated[str, Field(min_length=1)]
TopK = Annotated[int, Field(ge=1, le=MOST_WORDS)]


def zh(text: str) -> dict[str, Any]:
    """Return what adds a Chinese description to a field."""
    return {ZH: text}


class Body(BaseModel):
    """Base: a field that is not known is refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = Field(
        None, description="name of the model; may be left out",
        json_schema_extra=zh("模型的名稱；可以不寫"),
    )  # fmt: skip


class FillBody(Body):
    """A sentence with blanks."""

    prompt: Text = Field(
        description="[MASK] is a blank; one is added at the end where there is none",
        json_schema_extra=zh("[MASK] 是空格；一個也沒有，就在句尾加一個"),
        examples=["台灣最高的山是[MASK]山。"],
    )  # fmt: skip
    top_k: TopK = Field(
        5, description="words that are listed", json_schema_extra=zh("列出幾個詞"), examples=[5]
    )
    word_length: int = Field(
        1, ge=1, le=LONGEST_WORD, description="characters one [MASK] may become",
        json_schema_extra=zh("一個 [MASK] 最多可以填成幾個字"), examples=[1],
    )  # fmt: skip
    candidates: list[Text] | None = Field(
        None, min_length=1, max_length=MOST_WORDS, examples=[["玉", "雪", "陽明"]],
        description="words to choose from; any word where it is left out",
        json_schema_extra=zh("只從這些詞裡選；不寫就是什麼詞都可以"),
    )  # fmt: skip


class AnswerBody(Body):
    """A multiple-choice question."""

    question: Text = Field(
        description="the question, without its options", json_schema_extra=zh("題目，不含選項"),
        examples=["最大的行星是？"],
    )  # fmt: skip
    options: Annotated[dict[Text, str], Field(min_length=2, max_length=MOST_OPTIONS)] | str = Field(
        description='{"A": "地球", "B": "木星"}, or as one text, "A:地球 B:木星"',
        json_schema_extra=zh('{"A": "地球", "B": "木星"}，或寫成一段文字 "A:地球 B:木星"'),
        examples=[{"A": "地球", "B": "木星", "C": "火星"}, "A:地球 B:木星 C:火星"],
    )
    scoring: str = Field(
        "auto", description="scoring method, as --scoring; auto is what the model was trained for",
        json_schema_extra=zh("作答方式，同 --scoring；auto 是模型訓練時的方式"), examples=["auto"],
    )  # fmt: skip
    orders: Literal[*ORDERS] = Field(  # type: ignore[valid-type]
        "cyclic", description="orders of the options that are averaged: as written, every rotation, all",
        json_schema_extra=zh("以幾種選項順序計分再平均：照原樣、輪轉、全部排列"), examples=["cyclic"],
    )  # fmt: skip

    @field_validator("scoring")
    @classmethod
    def _is_known(cls, value: str) -> str:
        """Refuse a name that no kind of model knows; whether this one can is the predictor's to say."""
        if value not in SCORINGS:
            near = nearest(value, SCORINGS)
            hint = f"是不是 {near[0]}？" if near else f"可以給的是 {listed(SCORINGS)}"
            raise ValueError(f"沒有 {shown(value)} 這種作答方式；{hint}")
        return value

    answer_format: Literal["letter", "index"] = Field(
        "letter", description="the answer as its label, or as its place, from 0",
        json_schema_extra=zh("答案寫成代號，或第幾個（從 0 起）"), examples=["letter"],
    )  # fmt: skip


class ClassifyBody(Body):
    """A text, or a pair of them."""

    text: Text = Field(
        description="the text", json_schema_extra=zh("要分類的文字"), examples=["今天的服務真好"]
    )
    pair: Text | None = Field(
        None, description="the second text, for a model of pairs", examples=["店員很親切"],
        json_schema_extra=zh("第二段文字，給句對的模型"),
    )  # fmt: skip
    top_k: TopK | None = Field(
        None, description="labels that are listed; all of them where it is left out", examples=[3],
        json_schema_extra=zh("列出幾個類別；不寫就是全部"),
    )  # fmt: skip


class TagBody(Body):
    """A text whose spans are wanted."""

    text: str = Field(
        description="the text, of any length; it may be empty", examples=["王小明住在臺北。"],
        json_schema_extra=zh("要標註的文字，長短不限，也可以是空的"),
    )  # fmt: skip


class SpanBody(Body):
    """A question about a passage."""

    question: Text = Field(
        description="the question", json_schema_extra=zh("問題"), examples=["誰住在臺北？"]
    )
    context: Text = Field(
        description="the passage, of any length", examples=["王小明住在臺北，李大華住在高雄。"],
        json_schema_extra=zh("文章，長短不限"),
    )  # fmt: skip
    top_k: TopK | None = Field(
        None, description="also list so many answers", json_schema_extra=zh("另外列出這麼多個答案"),
        examples=[3],
    )  # fmt: skip


# ---- what the server answers -------------------------------------------------------------------------------


class Limits(BaseModel):
    """What a request may ask for."""

    max_tokens: int | None = Field(
        description="tokens the model reads at once; null where no limit is known",
        json_schema_extra=zh("模型一次讀幾個 token；不知道上限就是 null"),
    )
    max_options: int = Field(
        MOST_OPTIONS, description="options of a question", json_schema_extra=zh("一題最多幾個選項")
    )
    max_words: int = Field(
        MOST_WORDS, description="words that are listed", json_schema_extra=zh("最多列出幾個詞")
    )
    max_word_length: int = Field(
        LONGEST_WORD, description="characters one blank may become",
        json_schema_extra=zh("一個空格最多填成幾個字"),
    )  # fmt: skip
    max_queue: int = Field(
        description="requests that are accepted and not answered yet; more get 429",
        json_schema_extra=zh("已經收下、還沒有答完的請求最多幾個；再多就回 429"),
    )
    request_timeout: float = Field(
        description="seconds for an answer; then 504",
        json_schema_extra=zh("一個請求最多算幾秒；超過就回 504"),
    )


class Bar(BaseModel):
    """A share with its 95 % interval."""

    role: Literal["model", "other", "trivial", "chance"] = Field(
        description="the model, the model before training, a simple rule, guessing",
        json_schema_extra=zh("這個模型、微調前、簡單的規則、亂猜"),
    )
    label: str = Field(description="in Chinese", json_schema_extra=zh("中文名稱"))
    value: float = Field(description="the figure", json_schema_extra=zh("數值"))
    interval_95: tuple[float, float] | None = Field(
        None, description="its ends", json_schema_extra=zh("95 % 區間的兩端")
    )


class Table(BaseModel):
    """A table of texts."""

    title: str
    head: list[str]
    rows: list[list[str]]


class SetSummary(BaseModel):
    """How the model did on one set of rows, when it was trained."""

    set: str = Field(
        description="test, held_back or validation",
        json_schema_extra=zh("正式測驗、保留、驗證（test、held_back、validation）"),
    )
    title: str
    metric: str = Field(
        description="what the bars show: accuracy, f1, rougeL (0 to 1) or perplexity",
        json_schema_extra=zh("長條是什麼指標：accuracy、f1、rougeL（0 到 1），或困惑度 perplexity"),
    )
    n: int = Field(description="rows; tokens for perplexity", json_schema_extra=zh("列數；困惑度是 token 數"))
    sentence: str = Field(description="the outcome, in Chinese", json_schema_extra=zh("一句話說明結果"))
    notes: list[str] = Field(
        description="what must stand beside the figures, in Chinese",
        json_schema_extra=zh("數字旁邊不能少的話"),
    )
    bars: list[Bar]
    tables: list[Table]


class CardSummary(BaseModel):
    """The run card of the model: how it was trained, on what, and how well it did."""

    task: str
    title: str
    base_model: str
    dataset: str
    step: int
    parameters: dict[str, int]
    objective: str
    scoring: str
    max_length: int
    flags: str = Field(
        description="flags that decided what the model became", json_schema_extra=zh("決定訓練結果的旗標")
    )
    lineage: str = Field(
        description="base, then each training, with the hash of the weights",
        json_schema_extra=zh("來歷：底模與每一次訓練，連同權重的雜湊"),
    )
    questions: int = Field(description="questions trained on", json_schema_extra=zh("訓練過的題數"))
    not_comparable: str = Field(
        description="why its figures must not be held against published ones; empty where they may",
        json_schema_extra=zh("為什麼成績不能與公布的相比；可以就是空的"),
    )
    sets: list[SetSummary]
    unreadable: bool = Field(
        False, description="the figures of run_card.json are in no form that is known",
        json_schema_extra=zh("run_card.json 的成績讀不懂"),
    )  # fmt: skip
    versions: dict[str, Any]


class ModelInfo(BaseModel):
    """What the model in service is, and what it can be asked."""

    model_config = ConfigDict(protected_namespaces=())

    name: str = Field(description="what requests call it", json_schema_extra=zh("請求裡的名稱"))
    kind: str = Field(
        description="masked, causal, classifier, choice, tagger, extractor, seq2seq or encoder",
        json_schema_extra=zh("模型的種類"),
    )
    kind_title: str
    paths: list[str] = Field(description="paths that it answers", json_schema_extra=zh("它能答的路徑"))
    precision: str
    device: str
    parameters: int = Field(description="weights", json_schema_extra=zh("參數個數"))
    needs_key: bool = Field(description="requests need an API key", json_schema_extra=zh("請求要帶 API 金鑰"))
    has_chat_template: bool = Field(
        description="it replies to a conversation; else it continues a text",
        json_schema_extra=zh("會對話；不然就是把文字接著寫下去"),
    )
    labels: list[str] = Field(
        description="classes of a classifier, types of a tagger",
        json_schema_extra=zh("分類模型的類別，標註模型的類型"),
    )
    multi_label: bool = Field(
        description="a text may have several labels, or none",
        json_schema_extra=zh("一段文字可以有幾個類別，或一個也沒有"),
    )
    trained_on_pairs: bool | None = Field(
        description="null where it is not known", json_schema_extra=zh("以句對訓練的；不知道就是 null")
    )
    may_be_none: bool = Field(
        description="it may find that a passage has no answer",
        json_schema_extra=zh("會說文章裡沒有答案"),
    )
    scorings: list[str] = Field(
        description="values of `scoring` for /v1/answer",
        json_schema_extra=zh("/v1/answer 的 scoring 可用的值"),
    )
    limits: Limits
    card: CardSummary | None = Field(
        description="null: the model was not trained by this project",
        json_schema_extra=zh("null：不是這個專案訓練的模型"),
    )


class ErrorDetail(BaseModel):
    """What went wrong, in one sentence."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An answer other than 200, in OpenAI's shape."""

    error: ErrorDetail
