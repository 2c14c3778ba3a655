"""Save models as folders in Hugging Face's format, then read them back and compare."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune.models.encoder_decoder import generation_config
from finetune.models.kinds import CLASSES, is_seq2seq, kind_of
from finetune.runtime.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def save_model(
    folder: Path,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, Tensor],
    ends: Iterable[int] = (),
    longest: int = 0,
) -> None:
    """Write a complete Hugging Face folder, then read it back and compare every tensor.

    Args:
        weights: the full state, on the CPU. Tied tensors may be there once or twice.
        ends: for a causal model: ids of the tokens that end a reply, for its generation_config.json.
        longest: for an encoder-decoder: tokens of an output, for its generation_config.json.

    Raises:
        RunError: weights are missing, or what was read back differs.
    """
    import transformers
    from huggingface_hub import save_torch_state_dict

    with torch.device("meta"):
        model = getattr(transformers, CLASSES[kind_of(config)]).from_config(config)
    _, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unexpected or missing:
        raise RunError(f"要存的權重不完整：少了 {missing[:3]}，多了 {list(unexpected)[:3]}")
    if kind_of(config) == "causal":
        _align_special_tokens(config, tokenizer)
    config.dtype, config.architectures = torch.float32, [type(model).__name__]
    save_config(folder, config, tokenizer, longest)
    if ends:
        pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
        transformers.GenerationConfig(
            eos_token_id=sorted(ends), pad_token_id=pad, bos_token_id=bos
        ).save_pretrained(folder)
    state = dict(model.named_parameters())  # tied tensors once
    state |= {name: tensor for name, tensor in weights.items() if name in dict(model.named_buffers())}
    save_torch_state_dict(
        {name: tensor.detach() for name, tensor in state.items()}, folder, metadata={"format": "pt"}
    )
    save_tokenizer(folder, tokenizer)
    compare_saved(folder, model)


def save_config(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, longest: int = 0
) -> None:
    """Write config.json and, of an encoder-decoder, generation_config.json; arguments as `save_model`."""
    config.save_pretrained(folder)
    if is_seq2seq(config):
        generation_config(config, tokenizer, longest).save_pretrained(folder)


def _align_special_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's special tokens into a causal model's configuration.

    The tokenizer may have been given one by this project. An EOS token that is one of several stays.
    """
    config.pad_token_id = tokenizer.pad_token_id
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        config.eos_token_id = tokenizer.eos_token_id
    if tokenizer.bos_token_id is not None:
        config.bos_token_id = tokenizer.bos_token_id


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the tokenizer's files, and vocab.txt, which older tools need and transformers 5 leaves out."""
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    contiguous = [vocabulary[word] for word in words] == list(range(len(words)))
    if tokenizer.mask_token_id is not None and contiguous and not any("\n" in word for word in words):
        (Path(folder) / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def compare_saved(folder: Path, model: nn.Module) -> None:
    """Read model.safetensors back and compare it with the model.

    Raises:
        RunError: a parameter differs, or is missing and not tied to one that is there.
    """
    from safetensors import safe_open

    expected = dict(model.named_parameters(remove_duplicate=False))
    by_identity: dict[int, list[str]] = {}
    for name, parameter in expected.items():
        by_identity.setdefault(id(parameter), []).append(name)
    saved_names: set[str] = set()
    files = sorted(Path(folder).glob("model*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118  no dict: it cannot be iterated over
                if name in expected and not torch.equal(saved.get_tensor(name), expected[name].detach()):
                    raise RunError(f"{file} 存壞了：{name} 與記憶體中的不同")
                saved_names.add(name)
    lost = [names[0] for names in by_identity.values() if not saved_names.intersection(names)]
    if lost or not files:
        raise RunError(f"{folder} 存得不完整：少了 {'、'.join(lost[:3]) or 'model.safetensors'}")
