"""Fields of the API in words, by name: for those whose schema says nothing of them, or only in English."""

from __future__ import annotations

from typing import Any

from finetune.serving.schemas import ZH

WORDS = {  # field -> (English, Chinese)
    # OpenAI's
    "prompt": ("a text, or a list of them; token ids too", "一段文字，或好幾段；也可以是 token 編號"),
    "messages": (
        "the conversation so far, the last message the user's",
        "到目前為止的對話，最後一則是使用者的",
    ),
    "role": ("who speaks: system, user or assistant", "誰說的：system、user、assistant"),
    "content": ("the text, or a list of parts of type text", "文字，或一串 type 是 text 的部分"),
    "text": ("the text", "文字"),
    "type": ("its kind", "種類"),
    "max_tokens": ("longest reply, in tokens", "最多寫幾個 token"),
    "max_completion_tokens": ("the same as max_tokens, by its newer name", "同 max_tokens，這是新的名稱"),
    "temperature": (
        "how evenly tokens are drawn; 0 always takes the likeliest",
        "抽樣的溫度；0 是每次都選最可能的。temperature、top_p、seed 都不寫，也是選最可能的",
    ),
    "top_p": (
        "draw among the likeliest tokens that have this much probability together",
        "只從機率加起來到這麼多的、最可能的 token 裡抽",
    ),
    "top_k": ("draw among so many tokens; 0 or -1: all", "只從這麼多個 token 裡抽；0 或 -1 是全部"),
    "min_p": (
        "draw among tokens with this share of the likeliest one's probability",
        "只從機率至少是最可能者這麼多倍的 token 裡抽",
    ),
    "seed": ("the same seed gives the same reply", "種子一樣，回答就一樣"),
    "n": ("replies to each prompt; the i-th has seed + i", "每個提示寫幾個回答；第 i 個的種子是 seed + i"),
    "stop": ("texts before which a reply ends", "寫到這些字串之前就停"),
    "stream": ("send the reply piece by piece, as server-sent events", "以 server-sent events 一段一段送出"),
    "stream_options": ("what a stream says beside the text", "串流時除了文字還送什麼"),
    "include_usage": ("the last part counts the tokens", "最後一段附上 token 數"),
    "repetition_penalty": ("above 1: what was said before is less likely", "大於 1：說過的比較不會再說"),
    "min_tokens": ("a reply does not end before", "至少寫幾個 token"),
    "echo": ("the answer begins with the prompt", "回答以提示開頭"),
    "logprobs": ("log-probabilities of the tokens", "附上每個 token 的對數機率"),
    "top_logprobs": ("also of so many others in each place", "每個位置另附這麼多個其他 token 的對數機率"),
    "input": ("a text, token ids, or a list of either", "一段文字或 token 編號，或好幾段"),
    "encoding_format": ("numbers, or float32 in base64", "數字，或以 base64 寫的 float32"),
    "dimensions": ("the model's own number alone", "只能是模型本身的維數"),
    "user": ("not used", "不使用"),
    # text-embeddings-inference's
    "inputs": (
        'a text, a pair ["a", "b"], or a list of ["a"] and ["a", "b"]',
        '一段文字、一個句對 ["甲", "乙"]，或一串 ["甲"] 與 ["甲", "乙"]',
    ),
    "raw_scores": ("logits instead of probabilities", "給 logit，不給機率"),
    "truncate": (
        "let a text that is too long lose its end; else it is refused",
        "太長的文字截掉尾端；不然就不收",
    ),
    # what the server answers
    "kind_title": ("the kind in Chinese", "種類的中文名稱"),
    "precision": ("what it computes in: fp32, bf16 or fp16", "計算的精度：fp32、bf16、fp16"),
    "device": ("where it computes", "在哪裡計算"),
    "limits": ("what a request may ask for", "一個請求可以要求多少"),
    "task": ("--task of its training", "訓練的 --task"),
    "title": ("in Chinese", "中文標題"),
    "base_model": ("what it was trained from", "底模"),
    "dataset": ("what it was trained on", "訓練的資料"),
    "step": ("optimizer steps", "訓練的步數"),
    "parameters": ("weights, and how many of them were trained", "參數個數，與其中訓練了多少"),
    "objective": ("training objective", "訓練目標"),
    "scoring": ("scoring method that it was trained for", "訓練時的作答方式"),
    "max_length": ("tokens of a row in training", "訓練時一列最多幾個 token"),
    "sets": ("figures by set of rows, the most trustworthy first", "各組資料的成績，最可信的在前"),
    "bars": ("the figure beside simple rules", "成績，與簡單的規則比較"),
    "tables": ("more figures", "其他數字"),
    "head": ("head of the columns", "各欄的標題"),
    "rows": ("cells, as texts", "各列，都是文字"),
    "versions": ("of Python and the libraries in training", "訓練時 Python 與函式庫的版本"),
    "error": ("what went wrong", "出了什麼錯"),
    "message": ("one sentence, in Chinese", "一句話的說明"),
    "param": ("the field that is wrong", "哪個欄位不對"),
    "code": ("not used", "不使用"),
}


def describe_fields(schemas: dict[str, Any]) -> None:
    """Add what is missing to the fields of the schemas of an OpenAPI document, in place."""
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            if ZH not in field and name in WORDS:
                english, field[ZH] = WORDS[name]
                field.setdefault("description", english)
