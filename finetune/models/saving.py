"""Model folders in Hugging Face's format: written whole, read back and compared, put in the place of older
ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.models.kinds import CLASSES, kind_of
from finetune.runtime.errors import RunError


def save_model(folder: Path, config, tokenizer, weights: dict[str, Tensor], ends: Iterable[int] = ()) -> None:
    """Writes a complete Hugging Face folder, then reads it back and compares every tensor.

    Args:
        weights: the full state, on the CPU. Tied tensors may be there once or twice.
        ends: of a causal model: ids of the tokens that end what it says, for whoever generates with it.

    Raises:
        RunError: what was written is not what was to be written.
    """
    import transformers
    from huggingface_hub import save_torch_state_dict

    with torch.device("meta"):
        model = getattr(transformers, CLASSES[kind_of(config)]).from_config(config)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unexpected or left:
        raise RunError(f"要存的權重不完整：少了 {left[:3]}，多了 {list(unexpected)[:3]}")
    if kind_of(config) == "causal":
        _agree(config, tokenizer)
    config.dtype, config.architectures = torch.float32, [type(model).__name__]
    config.save_pretrained(folder)
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


def _agree(config, tokenizer) -> None:
    """Makes a causal model's configuration name the special tokens that its tokenizer has, which may have got
    one here. An end that is one of several stays.
    """
    config.pad_token_id = tokenizer.pad_token_id
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        config.eos_token_id = tokenizer.eos_token_id
    if tokenizer.bos_token_id is not None:
        config.bos_token_id = tokenizer.bos_token_id


def save_tokenizer(folder: Path, tokenizer) -> None:
    """Tokenizer files, vocab.txt among them (transformers 5 no longer writes it; older tools need it)."""
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.get)
    whole = list(map(vocabulary.get, words)) == list(range(len(words)))
    if tokenizer.mask_token_id is not None and whole and not any("\n" in word for word in words):
        (Path(folder) / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def compare_saved(folder: Path, model: nn.Module) -> None:
    """Reads model.safetensors back: every parameter is there, shape and values, or tied to one that is."""
    from safetensors import safe_open

    expected = dict(model.named_parameters(remove_duplicate=False))
    by_identity: dict[int, list[str]] = {}
    for name, parameter in expected.items():
        by_identity.setdefault(id(parameter), []).append(name)
    found: set[str] = set()
    files = sorted(Path(folder).glob("model*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():
                if name in expected and not torch.equal(saved.get_tensor(name), expected[name].detach()):
                    raise RunError(f"{file} 存壞了：{name} 與記憶體中的不同")
                found.add(name)
    lost = [names[0] for names in by_identity.values() if not found.intersection(names)]
    if lost or not files:
        raise RunError(f"{folder} 存得不完整：少了 {'、'.join(lost[:3]) or 'model.safetensors'}")
