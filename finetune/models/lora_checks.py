"""Does LoRA do in this model what it should? Looked at before anything is taught: an adapter that the forward
pass goes around learns nothing, or cannot be merged, and a run of days would end with that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetune.models.kinds import kind_of
from finetune.models.kv_cache import probe_ids
from finetune.runtime.errors import UserError

SIZE = 0.5  # of what is added to a layer for the look, in units of the spread of its weights
OFF = 0.1  # of that change, what merging may be off: rounding in bf16 is a hundredth


@torch.no_grad()
def check_fit(model: nn.Module, flag: str) -> None:
    """Changes one adapter of each name by a random one, looks at the logits, merges it, looks again, and puts
    all back as it was.

    Args:
        model: of transformers, with the layers of peft inside.
        flag: with its value, for the message.

    Raises:
        UserError: adapters that the model goes around, that change nothing, or whose merging changes what
            the model says.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    training = [module for module in model.modules() if module.training]
    model.eval()
    ids = probe_ids(model)[:1]
    ids = ids[:, None] if kind_of(model.config) == "choice" else ids  # (questions, options, T)

    def said() -> Tensor:
        return model(input_ids=ids).logits.float()

    try:
        before, ran = _which_ran(layers, said)
        chosen = {name.rpartition(".")[2]: layers[name] for name in reversed(ran)}
        if idle := sorted({name.rpartition(".")[2] for name in layers} - chosen.keys()):
            raise UserError(_way_out(model, flag, f"不經過 {'、'.join(idle)} 這些層，加在那裡學不到", chosen))
        changed, merged = _changed(list(chosen.values()), said)
    finally:
        for module in training:
            module.training = True
    effect, off = (float((a - b).abs().mean()) for a, b in ((changed, before), (merged, changed)))
    if not effect > 0:
        raise UserError(_way_out(model, flag, "加了 LoRA 也說一樣的話", {}))
    if not off <= OFF * effect:
        raise UserError(_way_out(model, flag, "合併 LoRA 之後說的與合併前不同", {}))


def _way_out(model: nn.Module, flag: str, why: str, fitting: dict) -> str:
    named = ",".join(sorted(fitting))
    way_out = f"請改用 --lora_target_modules {named}" if named else "請去掉 --lora_rank，或換一個模型"
    return f"{flag}：{model.config.model_type} 模型{why}；{way_out}"


def _which_ran(layers: dict[str, nn.Module], said: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """The logits, and the names of the layers whose forward pass made them."""
    ran: dict[str, None] = {}
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: ran.setdefault(name))
        for name, layer in layers.items()
    ]
    try:
        return said(), list(ran)
    finally:
        for hook in hooks:
            hook.remove()


def _changed(layers: list, said: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The logits with other adapters in these layers, and with those merged; all is put back."""
    draw = torch.Generator().manual_seed(0)
    adapter = layers[0].active_adapters[0]
    packed = any(type(layer.get_base_layer()).__name__ == "Linear4bit" for layer in layers)
    for layer in layers:
        weight = layer.lora_B[adapter].weight
        weight.copy_(torch.randn(weight.shape, generator=draw))
        if not packed:
            added, own = layer.get_delta_weight(adapter), layer.get_base_layer().weight
            weight.mul_(SIZE * own.float().std().clamp(min=1e-4) / added.float().std())
    changed = merged = said()
    if not packed:  # merging into 4 bits rounds anew; such a model is merged in full precision
        kept = [layer.get_base_layer().weight.clone() for layer in layers]
        for layer in layers:
            layer.merge()
        merged = said()
        for layer, weight in zip(layers, kept, strict=True):
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.copy_(weight)
    for layer in layers:
        layer.lora_B[adapter].weight.zero_()
    return changed, merged
