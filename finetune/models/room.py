"""Room for prompts and replies: how many tokens a model can read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from finetune.models.decoding import Decoding
from finetune.models.forward import config_of
from finetune.models.kinds import is_seq2seq
from finetune.runtime.errors import UserError

Rows = Sequence[Sequence[int]]  # prompts as token ids


def reply_room(model: nn.Module, rows: Rows, decoding: Decoding) -> list[int]:
    """Return how many new tokens the model has room for after each prompt, as many as are asked for at most.

    Raises:
        UserError: as `check_prompts`.
    """
    check_prompts(model, rows)
    limit = positions_of(model)
    if is_seq2seq(config_of(model)):
        return [max(1, min(decoding.max_new_tokens, limit - 1))] * len(rows)  # after the decoder's start
    return [min(decoding.max_new_tokens, limit - len(row)) for row in rows]


def check_prompts(model: nn.Module, rows: Rows) -> None:
    """Raise UserError for prompts that are empty or leave the model no room."""
    if is_seq2seq(config_of(model)):
        _check_texts(model, rows)
        return
    limit = positions_of(model)
    problems = []
    for number, row in enumerate(rows, 1):
        label = f"第 {number} 個提示" if len(rows) > 1 else "提示"
        if not len(row):
            problems.append(f"{label}是空的（沒有任何 token）；請給至少一個字")
        elif len(row) >= limit:
            problems.append(
                f"{label}有 {len(row)} 個 token，這個模型連同回答最多 {limit} 個；"
                "請縮短提示，或換一個上下文更長的模型"
            )
    if problems:
        raise UserError(problems)


def _check_texts(model: nn.Module, rows: Rows) -> None:
    """Raise UserError for texts that are empty or longer than the encoder can read."""
    limit, problems = positions_of(model), []
    for number, row in enumerate(rows, 1):
        label = f"第 {number} 段文字" if len(rows) > 1 else "這段文字"
        if not len(row):
            problems.append(f"{label}是空的（沒有任何 token）；請給至少一個字")
        elif len(row) > limit:
            problems.append(f"{label}有 {len(row)} 個 token，這個模型最多讀 {limit} 個；請縮短它")
    if problems:
        raise UserError(problems)


def positions_of(model: nn.Module) -> int:
    """Return the number of tokens that the model can read."""
    config = config_of(model).get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or 1 << 30
