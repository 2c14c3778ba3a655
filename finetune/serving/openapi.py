"""What /openapi.json says of each path, in English and Chinese, beside what FastAPI finds in the code."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from finetune.serving.field_words import describe_fields
from finetune.serving.guard import OPEN
from finetune.serving.schemas import ZH, ErrorBody

ZH_SUMMARY = "x-summary-zh"
INTRODUCTION = (
    "A fine-tuned model behind an API. /v1/model tells what it is and which of these paths it answers.",
    "微調好的模型，以 API 提供。/v1/model 說明它是什麼模型、能答下面哪些路徑。",
)
ERRORS = {  # status -> what it means
    "400": ("this kind of model does not answer this path", "這種模型答不了這個路徑"),
    "401": ("an API key is needed", "要帶 API 金鑰"),
    "413": ("the request is too large", "請求太大"),
    "422": ("a field is wrong, or too long for the model", "欄位不對，或超過模型的長度"),
    "429": ("too many requests wait; see Retry-After", "等待的請求太多；幾秒後再來，見 Retry-After"),
    "503": ("the server is shutting down", "伺服器正在結束"),
    "504": ("the answer took longer than --request_timeout", "算得比 --request_timeout 久"),
}  # fmt: skip


class Said(NamedTuple):
    """A path in words: (English, Chinese), and examples."""

    summary: tuple[str, str]
    description: tuple[str, str]
    request: Any = None
    response: Any = None


_COMPLETION = {
    "id": "cmpl-1", "object": "text_completion", "created": 1767225600, "model": "my_model",
    "choices": [{"index": 0, "text": "一位老人。", "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
}  # fmt: skip
SAID = {
    "/v1/model": Said(
        ("What the model is", "這是什麼模型"),
        (
            "Kind, paths, limits, labels and the run card with its figures.",
            "種類、能答的路徑、限制、類別，以及 run card 與成績。",
        ),
    ),
    "/v1/models": Said(
        ("The models, as OpenAI lists them", "模型清單，格式同 OpenAI"), ("There is one.", "只有一個。"),
        response={"object": "list", "data": [{"id": "my_model", "object": "model"}]},
    ),
    "/v1/models/{name}": Said(
        ("One model, as OpenAI tells of it", "一個模型，格式同 OpenAI"),
        ("404 for another name.", "別的名稱是 404。"),
        response={"id": "my_model", "object": "model"},
    ),
    "/healthz": Said(
        ("Is it alive?", "還活著嗎？"), ("503 where it must be started again.", "要重新啟動時回 503。"),
        response={"status": "ok"},
    ),
    "/readyz": Said(
        ("May requests come?", "可以送請求來嗎？"), ("503 while it is ending.", "正在結束時回 503。"),
        response={"status": "ready"},
    ),
    "/v1/fill": Said(
        ("Fill blanks", "填空"),
        (
            "Words for the blanks of a sentence, the likeliest first: with their probability where one blank "
            "becomes one token, else with a score in nats per token and the whole sentence.",
            "句子裡的空格可以填什麼，機率高的在前。一個空格填一個 token 時附機率；"
            "否則附每個 token 的分數（nat）與填好的句子。",
        ),
        {"prompt": "台灣最高的山是[MASK]山。", "top_k": 2},
        {"prompt": "台灣最高的山是[MASK]山。",
         "predictions": [{"word": "玉", "probability": 0.91}, {"word": "高", "probability": 0.02}]},
    ),
    "/v1/answer": Said(
        ("Answer a multiple-choice question", "答選擇題"),
        (
            "The answer and the score of every option (log-probabilities); "
            "`tied` where several share the highest.",
            "答案，與每個選項的分數（對數機率）；最高分有好幾個時附 `tied`。",
        ),
        {"question": "最大的行星是？", "options": {"A": "地球", "B": "木星", "C": "火星"}},
        {"question": "最大的行星是？", "answer": "B", "scores": {"B": -0.11, "C": -2.9, "A": -3.2}},
    ),
    "/v1/classify": Said(
        ("Classify a text", "文字分類"),
        ("The label of a text or of a pair, or its labels where there may be several, and probabilities.",
         "一段文字（或句對）的類別，可有好幾個類別時是 `labels`；附每一類的機率。"),
        {"text": "今天的服務真好"},
        {"text": "今天的服務真好", "label": "好評", "probabilities": {"好評": 0.97, "負評": 0.03}},
    ),
    "/predict": Said(
        ("Classify, in the form of text-embeddings-inference", "分類，格式同 text-embeddings-inference"),
        ("For programs that are written for that server.", "給為那個伺服器寫的程式。"),
        {"inputs": "今天的服務真好"}, [{"score": 0.97, "label": "好評"}, {"score": 0.03, "label": "負評"}],
    ),
    "/v1/tag": Said(
        ("Mark spans of a text", "序列標註"),
        ("The spans of a text with their labels; places are in characters from 0, the end excluded.",
         "文字裡的標記與類型；位置以字元計，從 0 起，不含結尾。"),
        {"text": "王小明住在臺北。"},
        {"text": "王小明住在臺北。", "entities": [{"start": 0, "end": 3, "label": "PER", "text": "王小明"}]},
    ),
    "/v1/span": Said(
        ("Answer from a passage", "在文章裡找答案"),
        ("A part of the passage; the answer is empty and its places are null where the passage has none.",
         "答案是文章裡的一段；文章裡沒有答案時，答案是空的，位置是 null。"),
        {"question": "誰住在臺北？", "context": "王小明住在臺北，李大華住在高雄。"},
        {"question": "誰住在臺北？", "answer": "王小明", "start": 0, "end": 3, "score": 0.93},
    ),
    "/v1/embeddings": Said(
        ("Vectors of texts, in OpenAI's form", "文字的向量，格式同 OpenAI"),
        ("Pooled as the model brings it, or as --pooling says.", "池化方式照模型附的設定，或照 --pooling。"),
        {"model": "my_model", "input": ["今天天氣很好", "陽光普照"]},
        {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.01, -0.02]}]},
    ),
    "/v1/completions": Said(
        ("Continue a text, in OpenAI's form", "接著寫，格式同 OpenAI"),
        ("With `stream` as server-sent events. An encoder-decoder transforms the text.",
         "`stream` 以 server-sent events 一段一段送出。文字轉換模型則轉換這段文字。"),
        {"model": "my_model", "prompt": "很久很久以前，山裡住著", "max_tokens": 64}, _COMPLETION,
    ),
    "/v1/chat/completions": Said(
        ("Reply to a conversation, in OpenAI's form", "聊天，格式同 OpenAI"),
        ("With `stream` as server-sent events.", "`stream` 以 server-sent events 一段一段送出。"),
        {"model": "my_model", "messages": [{"role": "user", "content": "請介紹臺灣"}]},
        {**_COMPLETION, "id": "chatcmpl-1", "object": "chat.completion", "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "臺灣是…"}, "finish_reason": "stop"}]},
    ),
}  # fmt: skip


def describe(app: FastAPI) -> None:
    """Have an application answer /openapi.json with the words above."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way


def described(app: FastAPI) -> dict[str, Any]:
    """Return the schema of an application with summaries, descriptions, examples and errors."""
    schema = get_openapi(title=app.title, version=app.version, description=INTRODUCTION[0], routes=app.routes)
    schema["info"][ZH] = INTRODUCTION[1]
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in (
        "HTTPValidationError",
        "ValidationError",
    ):  # FastAPI's own form of an error, which is not ours
        schemas.pop(unused, None)
    definition = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**definition.pop("$defs"), "ErrorBody": definition}
    describe_fields(schemas)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _describe_operation(path, operation)
    return schema


def _describe_operation(path: str, operation: dict[str, Any]) -> None:
    responses = operation.setdefault("responses", {})
    responses.pop("422", None)  # in FastAPI's own form, which is not ours
    body = (operation.get("requestBody") or {}).get("content", {}).get("application/json")
    if said := SAID.get(path):
        operation["summary"], operation[ZH_SUMMARY] = said.summary
        operation["description"], operation[ZH] = said.description
        if said.request is not None and body is not None:
            body["example"] = said.request
        good = responses.get("200", {}).get("content", {}).get("application/json")
        if said.response is not None and good is not None:
            good["example"] = said.response
    for status, (text, chinese) in ERRORS.items():
        if body is not None or (status == "401" and path not in OPEN):
            content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
            responses[status] = {"description": text, ZH: chinese, "content": content}
