"""LoRA (arXiv:2106.09685) and QLoRA (arXiv:2305.14314) through peft.

Small matrices beside frozen ones are trained, saved separately, and merged into full-precision weights at the
end. The layers of peft are put inside the model of transformers, so the engines see an ordinary model whose
other parameters are frozen.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from finetune.models.forward import body_of, config_of
from finetune.models.heads import all_logits
from finetune.models.kinds import DTYPES, is_seq2seq
from finetune.models.lora_checks import check_fit
from finetune.models.source_checks import ADAPTER, ADAPTER_WEIGHTS
from finetune.models.tokenizer_checks import try_patterns
from finetune.runtime import limits
from finetune.runtime.console import log
from finetune.runtime.errors import RunError, UserError, nearest

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."  # prefix of the names in peft's files
TOLERANCE = 1e-3  # largest difference in logits between the model with its adapter and the merged one
PROMPT_TOKENS = 256  # tokens compared of each held-out prompt


@dataclass(frozen=True)
class Lora:
    """Hyperparameters of LoRA.

    Attributes:
        rank: rank of the matrices.
        alpha: `alpha` / `rank` scales the update.
        dropout: dropout on the adapter's inputs.
        targets: `auto`, or names of linear layers, by commas.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str = "auto"

    def __str__(self) -> str:
        return f"rank {self.rank}，alpha {self.alpha:g}，dropout {self.dropout:g}，{self.targets}"


def target_modules(model: nn.Module, wanted: str) -> list[str]:
    """Return the names of the layers that get an adapter.

    `auto`: every linear layer but the output head, which QLoRA found necessary to match full fine-tuning
    (arXiv:2305.14314, section 4, figure 2).

    Raises:
        UserError: a name that no linear layer has; the output head of a model whose embeddings are tied to
            it, since merging there would change the embeddings too.
    """
    head = cast(Any, model).get_output_embeddings()
    body: nn.Module = model if body_of(model) is None else body_of(model)  # T5 has its layers beside the head
    linear = {name.rpartition(".")[2] for name, module in body.named_modules() if _is_linear(module, head)}
    if wanted == "auto":
        return sorted(linear)
    heads = {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    problems = []
    for name in names:
        if name in heads and config_of(model).tie_word_embeddings:
            problems.append(
                f"--lora_target_modules {name}：這個模型的輸出層與詞嵌入是同一組權重，合併會改到兩者；"
                "請去掉它"
            )
        elif name not in linear | heads:
            guess = nearest(name, linear)
            hint = f"，是不是 {guess[0]}？" if guess else ""
            known = "、".join(sorted(linear))
            problems.append(f"--lora_target_modules：這個模型沒有叫 {name} 的線性層{hint}（有的是 {known}）")
    if problems or not names:
        raise UserError(problems or ["--lora_target_modules 是空的；請用 auto 或層的名稱"])
    return names


def _is_linear(module: nn.Module, head: nn.Module | None) -> bool:
    """Return whether a layer takes an adapter: a linear one that is not the output head."""
    return module is not head and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")


def adapter_sizes(model: nn.Module, rank: int) -> dict[str, int]:
    """Return the parameters that adapters of a rank add to each layer of the body, by name of the layer.

    The layers are those of `attach` with targets `auto`; each gets two matrices, rank × (inputs + outputs)
    (arXiv:2106.09685, section 4.1).

    Args:
        model: of transformers, possibly on the meta device.
        rank: of the matrices.
    """
    targets, new = target_modules(model, "auto"), _new_modules(model)
    outside, head = {*_head_modules(model, targets, new), *new}, cast(Any, model).get_output_embeddings()
    return {
        name: rank * sum(cast(Any, module).weight.shape)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and name not in outside and _is_linear(module, head)
    }


def attach(model: nn.Module, lora: Lora, base: str, seed: int = 0) -> PeftModel:
    """Freeze the model and put adapters into it.

    Args:
        model: a transformers model.
        lora: hyperparameters.
        base: name or folder that the adapter's configuration will name as its base.
        seed: fixes the random half of the matrices; the other half is 0, so that nothing changes at first.

    Returns:
        Peft's view of the model; its `get_base_model()` is the model itself.

    Raises:
        UserError: layers that do not exist, or in which LoRA does not work.
    """
    if not getattr(model, "is_loaded_in_4bit", False):  # peft looks at bitsandbytes all the same
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_4bit", False):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _never_repack(model)
    targets = target_modules(model, lora.targets)
    new = _new_modules(model)  # randomly initialised: trained whole
    outside = _head_modules(model, targets, new)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=outside if lora.targets == "auto" and outside else None,
        bias="none",
        modules_to_save=new or None,
        task_type=_task_type(model),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's about transformers
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # which peft corrects by itself
        torch.manual_seed(seed)
        try:
            view = get_peft_model(cast(Any, model), config)
        except ValueError as error:  # layers that peft refuses in some families
            raise _refusal(error, model, lora, targets) from error
    check_fit(model, f"--lora_target_modules {lora.targets}")
    folder = Path(base).expanduser()
    config.base_model_name_or_path = str(folder.resolve()) if folder.is_dir() else base
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    log(
        f"LoRA：rank {lora.rank}、alpha {lora.alpha:g}、dropout {lora.dropout:g}，"
        f"加在 {'、'.join(sorted(config.target_modules or ()))}；"
        f"訓練 {trained / 1e6:.2f} M 參數（{trained / total:.1%}）"
    )
    return view


def _task_type(model: nn.Module) -> str | None:
    """Return the name that peft's configuration has for what the model does."""
    if is_seq2seq(config_of(model)):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if cast(Any, model).can_generate() else None


def _head_modules(model: nn.Module, targets: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return layers of the head that have the name of one of the body, as BERT's transform.dense.

    Args:
        model: of transformers.
        targets: names of the body's layers that get an adapter.
        new: as `_new_modules` returns it.
    """
    body = f"{model.base_model_prefix}." if body_of(model) is not None else ""
    tops = tuple(f"{name}." for name in new)
    return [
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in targets
        and (not name.startswith(body) or name in new or name.startswith(tops))
    ]


def _refusal(error: ValueError, model: nn.Module, lora: Lora, targets: Sequence[str]) -> UserError:
    """Word peft's refusal of some layers, with flags that it would take."""
    reason = " ".join(str(error).split())[:300]
    fitting = ",".join(name for name in targets if f"'{name}'" not in reason)
    hint = "--lora_dropout 0" if "lora_dropout" in reason else f"--lora_target_modules {fitting}"
    family = f"{config_of(model).model_type} 模型加不了這樣的 LoRA"
    return UserError(f"--lora_target_modules {lora.targets}：{family}：{reason}；請改用 {hint}")


def _new_modules(model: nn.Module) -> list[str]:
    """Return the topmost modules all of whose parameters are new: the head that was put on."""
    new: frozenset[str] = getattr(model, "new_weights", frozenset())
    names: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        if (
            name
            and parameters
            and new.issuperset(parameters)
            and not name.startswith(tuple(f"{top}." for top in names))
        ):
            names.append(name)
    return names


def _never_repack(model: nn.Module) -> None:
    """Keep the layers of bitsandbytes in training mode.

    On a CPU bitsandbytes repacks 4-bit weights permanently once they are evaluated, and cannot train them
    after that. Its layers compute the same in both modes.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()
            cast(Any, module).train = lambda mode=True, module=module: module


def save_adapter(folder: Path, view: PeftModel, weights: dict[str, Tensor]) -> None:
    """Write peft's files, then read them back.

    Args:
        folder: where to write.
        view: as `attach` returned it.
        weights: the adapter's parameters by their names in the model.

    Raises:
        RunError: what was read back differs.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    named = {PREFIX + name: tensor for name, tensor in weights.items()}
    view.save_pretrained(str(folder), state_dict=named, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, a form that nobody filled in
    expected = get_peft_model_state_dict(view, state_dict=named, save_embedding_layers=False)
    saved = load_file(folder / ADAPTER_WEIGHTS)
    if saved.keys() != expected.keys() or not all(torch.equal(saved[k], expected[k]) for k in saved):
        raise RunError(f"{folder} 的 LoRA 權重存壞了：與記憶體中的不同")


def with_adapter(model: nn.Module, folder: str | Path, flag: str) -> PeftModel:
    """Return peft's view of a model with the adapter of a folder in it, in fp32.

    Raises:
        UserError: the adapter belongs to another model.
    """
    from peft import PeftModel

    adapter_config = limits.read(Path(folder).expanduser() / ADAPTER)
    try_patterns(adapter_config, [name for name, _ in model.named_modules()], f"{flag} {folder}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "Found missing adapter keys")  # an adapter of another model
            view = PeftModel.from_pretrained(cast(Any, model), str(folder), autocast_adapter_dtype=True)
            _check_all_used(view, Path(folder))
            return view
    except Exception as error:  # peft or safetensors failed, or the file makes no sense
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag} {folder}：LoRA 的權重與底模不合：{reason}") from error


def _check_all_used(view: PeftModel, folder: Path) -> None:
    """Check that the model has all layers whose weights the file holds: peft drops others silently.

    Raises:
        KeyError: some layers are missing.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as saved:
        unknown = set(saved.keys()) - set(get_peft_model_state_dict(view, save_embedding_layers=False))
    if unknown:
        raise KeyError(f"底模沒有這些層：{'、'.join(sorted(unknown)[:3])}")


@torch.no_grad()
def merged(view: PeftModel, prompts: Sequence[Sequence[int]]) -> nn.Module:
    """Merge the adapter into the weights and check that the logits stay the same.

    Args:
        view: as `with_adapter` returns it, in full precision.
        prompts: held-out token ids to compare logits on.

    Raises:
        RunError: some logit differs by more than TOLERANCE.
    """
    view.eval()
    rows = [torch.tensor([list(ids)[:PROMPT_TOKENS]], device=view.device) for ids in prompts]
    apart = [all_logits(view.get_base_model(), ids) for ids in rows]
    model = view.merge_and_unload(safe_merge=True).eval()
    together = [all_logits(model, ids) for ids in rows]
    worst = max((float((a - b).abs().max()) for a, b in zip(apart, together, strict=True)), default=0.0)
    if not worst <= TOLERANCE:
        raise RunError(
            f"LoRA 合併後的模型與合併前不同：logits 最多差 {worst:.2g}，容許 {TOLERANCE:g}；沒有存成模型。"
            "未合併的權重在 --save_dir 的 best，可加 --no_merge 直接使用"
        )
    compared = f"在 {len(rows)} 段文字上，logits 最多差 {worst:.1e}（容許 {TOLERANCE:g}）"
    log(f"LoRA 已合併進完整的權重：{compared}")
    return model


def check_4bit() -> None:
    """Check that bitsandbytes, which does the 4-bit arithmetic, is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "--load_in_4bit：沒有安裝 bitsandbytes；pip install -r requirements-4bit.txt，或去掉這個旗標"
        )


def quantization(precision: str, device: torch.device) -> dict[str, Any]:
    """Return `LoadOptions.from_pretrained` for 4-bit weights computed in `precision`.

    The weights are 4-bit NormalFloat with doubly quantized scales (arXiv:2305.14314, section 3).
    """
    from transformers import BitsAndBytesConfig

    compute = DTYPES[precision]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": config, "dtype": compute, "device_map": {"": device}}
