"""Check before training that LoRA works in a model: that adapters are used, and can be merged.

Otherwise a run of days would end with adapters that learned nothing, or cannot be merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.forward import config_of
from finetune.models.heads import all_logits
from finetune.models.kv_cache import probe_ids
from finetune.runtime.errors import UserError

SIZE = 0.5  # size of the trial update of a layer, in units of the spread of its weights
OFF = 0.1  # the error of merging that is allowed, as a share of that change: rounding in bf16 is a hundredth


@torch.no_grad()
def check_fit(model: nn.Module, flag: str) -> None:
    """Compare logits with random adapters before and after merging, then restore the model.

    One layer of each name is tried.

    Args:
        model: a transformers model, with peft's layers inside.
        flag: with its value, for the message.

    Raises:
        UserError: adapters that the forward pass does not use, that change nothing, or whose merging changes
            the logits.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    training = [module for module in model.modules() if module.training]
    model.eval()
    ids = probe_ids(model)[:1]

    def logits() -> Tensor:
        return all_logits(model, ids)

    try:
        before, used = _used_layers(layers, logits)
        chosen = {name.rpartition(".")[2]: layers[name] for name in reversed(used)}
        if idle := sorted({name.rpartition(".")[2] for name in layers} - chosen.keys()):
            reason = f"不經過 {'、'.join(idle)} 這些層，加在那裡不會被訓練到"
            raise UserError(_message(model, flag, reason, sorted(chosen)))
        changed, merged = _trial_logits(list(chosen.values()), logits)
    finally:
        for module in training:
            module.training = True
    effect, off = (float((a - b).abs().mean()) for a, b in ((changed, before), (merged, changed)))
    if not effect > 0:
        raise UserError(_message(model, flag, "加了 LoRA 輸出也不變", []))
    if not off <= OFF * effect:
        raise UserError(_message(model, flag, "合併 LoRA 之後的輸出與合併前不同", []))


def _message(model: nn.Module, flag: str, reason: str, usable: list[str]) -> str:
    """Describe why LoRA does not work, and name the usable layers or another way."""
    names = ",".join(usable)
    advice = f"請改用 --lora_target_modules {names}" if names else "請去掉 --lora_rank，或換一個模型"
    return f"{flag}：{config_of(model).model_type} 模型{reason}；{advice}"


def _used_layers(layers: dict[str, Any], logits: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """Return the logits, and the names of the layers that ran in the forward pass."""
    used: dict[str, None] = {}
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: used.setdefault(name))
        for name, layer in layers.items()
    ]
    try:
        return logits(), list(used)
    finally:
        for hook in hooks:
            hook.remove()


def _trial_logits(layers: list[Any], logits: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return logits with random adapters in these layers, and with those merged; restore the layers."""
    generator = torch.Generator().manual_seed(0)
    adapter = layers[0].active_adapters[0]
    quantized = any(type(layer.get_base_layer()).__name__ == "Linear4bit" for layer in layers)
    for layer in layers:
        weight = layer.lora_B[adapter].weight
        weight.copy_(torch.randn(weight.shape, generator=generator))
        if not quantized:
            update, base = layer.get_delta_weight(adapter), layer.get_base_layer().weight
            weight.mul_(SIZE * base.float().std().clamp(min=1e-4) / update.float().std())
    changed = merged = logits()
    if not quantized:  # merging into 4 bits rounds anew; such a model is merged in full precision
        originals = [layer.get_base_layer().weight.clone() for layer in layers]
        for layer in layers:
            layer.merge()
        merged = logits()
        for layer, weight in zip(layers, originals, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.copy_(weight)
    for layer in layers:
        layer.lora_B[adapter].weight.zero_()
    return changed, merged
