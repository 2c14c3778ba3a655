"""Hidden states of a text: what every layer of a model's body makes of each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch

from finetune.cli.inference_args import InferenceArgs, required
from finetune.models.forward import config_of
from finetune.models.tokenizer import prompt_length
from finetune.predict.embedder import UNLIMITED, body_for_vectors, checked_text
from finetune.runtime.console import as_json, log, plain, print_result
from finetune.runtime.errors import UserError
from finetune.runtime.text_width import align_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREVIEWED = 4  # numbers of a token's vector on the screen


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device | str
) -> dict[str, Any]:
    """Return the hidden states of a text's T tokens, special tokens included, as transformers computes them.

    Of an encoder-decoder they are those of its encoder. A text that is too long for the model loses its end.

    Returns:
        `tokens`: list of T texts; `input_ids`: list of T ids; `last_hidden_state`: float32 (T, H);
        `layers`: list of float32 (T, H), first the embeddings, then one for each layer.

    Raises:
        UserError: what is no text, an empty text, half characters; a model that keeps no hidden states.
    """
    body = body_for_vectors(model)
    longest = prompt_length(config_of(model), tokenizer, UNLIMITED)
    inputs = tokenizer(checked_text(text), return_tensors="pt", truncation=True, max_length=longest)
    count = inputs["input_ids"].shape[1]
    if not count:
        raise UserError("這段文字在這個模型的 tokenizer 裡一個 token 也沒有")
    if count >= longest and len(tokenizer(text)["input_ids"]) > count:
        log(f"⚠️ 文字超過 {longest} 個 token，超過的部分沒有讀")
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    output = body(**inputs, output_hidden_states=True)
    if getattr(output, "hidden_states", None) is None:
        raise UserError(f"{type(body).__name__} 這一類模型不提供各層的 hidden states")
    ids = inputs["input_ids"][0].tolist()
    return {
        "tokens": tokenizer.convert_ids_to_tokens(ids),
        "input_ids": ids,
        "last_hidden_state": _array(output.last_hidden_state),
        "layers": [_array(layer) for layer in output.hidden_states],
    }


def _array(hidden: torch.Tensor) -> numpy.ndarray:
    """Return hidden states (1, T, H) as float32 (T, H)."""
    return hidden[0].float().cpu().numpy()


def show_hidden_states(
    flags: InferenceArgs,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str,
) -> None:
    """Print the hidden states of --prompt: their shapes, and the beginning of each token's vector."""
    text = required(flags.prompt)
    found = hidden_states(model, tokenizer, text, device)
    last, layers = found["last_hidden_state"], found["layers"]
    shape = [1, *last.shape]
    if flags.json:
        record = {
            "prompt": text, "tokens": found["tokens"], "input_ids": found["input_ids"], "shape": shape,
            "layers": [[1, *layer.shape] for layer in layers], "last_hidden_state": last.tolist(),
        }  # fmt: skip
        print_result(as_json(record))
        return
    part = "（編碼器的）" if config_of(model).is_encoder_decoder else ""
    print_result(f"文字: {text}\n")
    print_result(
        f"last_hidden_state {part}的形狀: {tuple(shape)}，依序是：幾段文字、幾個 token、每個 token 幾個數"
    )
    shapes = dict.fromkeys(str((1, *layer.shape)) for layer in layers)
    print_result(
        f"hidden_states: {len(layers)} 個（詞嵌入 1 個，{len(layers) - 1} 層各 1 個），"
        f"形狀: {'、'.join(shapes)}\n"
    )
    print_result(f"每個 token 在最後一層的向量（前 {PREVIEWED} 個數，與整個向量的長度）:")
    rows = [
        [str(number), plain(name, lines=False), *(f"{value:.4f}" for value in vector[:PREVIEWED]), "…",
         f"{numpy.linalg.norm(vector):.4f}"]
        for number, (name, vector) in enumerate(zip(_readable(tokenizer, found), last, strict=True))
    ]  # fmt: skip
    for cells in align_table(rows, right=(0, *range(2, len(rows[0])))):
        print_result("  " + "  ".join(cells))


def _readable(tokenizer: PreTrainedTokenizerBase, found: dict[str, Any]) -> list[str]:
    """Return the tokens as people read them: those of a byte-level vocabulary decoded, where they can be."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if type(decoder).__name__ != "ByteLevel":
        return found["tokens"]
    decoded = [str(tokenizer.decode([number])) for number in found["input_ids"]]
    return [
        name if "\ufffd" in text or not text else text
        for name, text in zip(found["tokens"], decoded, strict=True)
    ]
