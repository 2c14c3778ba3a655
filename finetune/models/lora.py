"""LoRA (arXiv:2106.09685) and QLoRA (arXiv:2305.14314) through peft: small matrices beside frozen ones are
trained, kept apart, and merged into full-precision weights at the end.

The layers of peft are put inside the model of transformers, so the engines see an ordinary model whose other
parameters are frozen.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.models.kinds import DTYPES, kind_of
from finetune.models.lora_checks import check_fit
from finetune.models.source_checks import ADAPTER, ADAPTER_WEIGHTS
from finetune.models.tokenizer_checks import try_patterns
from finetune.runtime import limits
from finetune.runtime.console import log
from finetune.runtime.errors import RunError, UserError, nearest

PREFIX = "base_model.model."  # of names in peft's files
TOLERANCE = 1e-3  # of logits, adapter against merged
PROMPT_TOKENS = 256  # of each held-out prompt that is compared


@dataclass(frozen=True)
class Lora:
    """`targets`: `auto`, or names of linear layers, by commas. `alpha` / `rank` scales the update."""

    rank: int
    alpha: float
    dropout: float
    targets: str = "auto"

    def __str__(self) -> str:
        return f"rank {self.rank}，alpha {self.alpha:g}，dropout {self.dropout:g}，{self.targets}"


def target_modules(model: nn.Module, wanted: str) -> list[str]:
    """Names of the layers that get an adapter.

    `auto`: every linear layer but the output head, which QLoRA found necessary to match full fine-tuning
    (arXiv:2305.14314, section 4, figure 2).

    Raises:
        UserError: a name that no linear layer has; the output head of a model whose embeddings are tied to
            it, since merging there would change the embeddings too.
    """
    head = model.get_output_embeddings()
    inside = getattr(model, model.base_model_prefix)
    linear = {
        name.rpartition(".")[2]
        for name, module in inside.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    if wanted == "auto":
        return sorted(linear)
    heads = {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    problems = []
    for name in names:
        if name in heads and model.config.tie_word_embeddings:
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


def attach(model: nn.Module, lora: Lora, base: str, seed: int = 0):
    """Freezes the model and puts adapters into it. Returns peft's view of it; `get_base_model()` is the model
    itself.

    Args:
        base: name or folder the adapter will say it belongs to.
        seed: of the random half of the matrices; the other half is 0, so that nothing changes at first.

    Raises:
        UserError: layers that are not there, or in which LoRA does not do what it should.
    """
    if not getattr(model, "is_loaded_in_4bit", False):  # peft looks at bitsandbytes all the same
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_loaded_in_4bit", False):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _never_repack(model)
    targets = target_modules(model, lora.targets)
    body = model.base_model_prefix + "."
    new = _new_modules(model)  # random: taught whole
    outside = [  # layers of the head that are called like one of the body, as BERT's transform.dense
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in targets
        and (not name.startswith(body) or name in new or name.startswith(tuple(f"{top}." for top in new)))
    ]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=outside if lora.targets == "auto" and outside else None,
        bias="none",
        modules_to_save=new or None,
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's about transformers
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # which it mends itself
        torch.manual_seed(seed)
        try:
            view = get_peft_model(model, config)
        except ValueError as error:  # layers that peft knows not to fit a family
            reason = " ".join(str(error).split())[:300]
            fitting = ",".join(name for name in targets if f"'{name}'" not in reason)
            way_out = "--lora_dropout 0" if "lora_dropout" in reason else f"--lora_target_modules {fitting}"
            family = f"{model.config.model_type} 模型加不了這樣的 LoRA"
            raise UserError(
                f"--lora_target_modules {lora.targets}：{family}：{reason}；請改用 {way_out}"
            ) from error
    check_fit(model, f"--lora_target_modules {lora.targets}")
    folder = Path(base).expanduser()
    config.base_model_name_or_path = str(folder.resolve()) if folder.is_dir() else base
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    log(
        f"LoRA：rank {lora.rank}、alpha {lora.alpha:g}、dropout {lora.dropout:g}，"
        f"加在 {'、'.join(sorted(config.target_modules))}；"
        f"訓練 {trained / 1e6:.2f} M 參數（{trained / whole:.1%}）"
    )
    return view


def _new_modules(model: nn.Module) -> list[str]:
    """The topmost modules all of whose parameters are new: the head that was put on."""
    new, found = getattr(model, "new_weights", frozenset()), []
    for name, module in model.named_modules():
        inside = [f"{name}.{own}" for own, _ in module.named_parameters()]
        if (
            name
            and inside
            and new.issuperset(inside)
            and not name.startswith(tuple(f"{top}." for top in found))
        ):
            found.append(name)
    return found


def _never_repack(model: nn.Module) -> None:
    """On a CPU bitsandbytes repacks 4-bit weights for good once they are evaluated, and cannot train them
    after that: its layers, which do the same in both modes, are kept in the one for training.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()
            module.train = lambda mode=True, module=module: module


def save_adapter(folder: Path, view, weights: dict[str, Tensor]) -> None:
    """Writes peft's files, then reads them back.

    Args:
        weights: the adapter's parameters by their names in the model.

    Raises:
        RunError: what was written is not what was to be written.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    named = {PREFIX + name: tensor for name, tensor in weights.items()}
    view.save_pretrained(folder, state_dict=named, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, all blanks
    expected = get_peft_model_state_dict(view, state_dict=named, save_embedding_layers=False)
    saved = load_file(folder / ADAPTER_WEIGHTS)
    if saved.keys() != expected.keys() or not all(torch.equal(saved[k], expected[k]) for k in saved):
        raise RunError(f"{folder} 的 LoRA 權重存壞了：與記憶體中的不同")


def with_adapter(model: nn.Module, folder: str | Path, flag: str):
    """Peft's view of a model with the adapter of a folder in it, in fp32.

    Raises:
        UserError: the adapter belongs to another model.
    """
    from peft import PeftModel

    said = limits.read(Path(folder).expanduser() / ADAPTER)
    try_patterns(said, [name for name, _ in model.named_modules()], f"{flag} {folder}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "Found missing adapter keys")  # an adapter of another model
            view = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=True)
            _all_used(view, Path(folder))
            return view
    except Exception as error:  # peft's, safetensors', or of a file that makes no sense
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag} {folder}：LoRA 的權重與底模不合：{reason}") from error


def _all_used(view, folder: Path) -> None:
    """Raises KeyError when the file holds weights of layers that the model does not have: peft drops them
    without a word.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as saved:
        unknown = set(saved.keys()) - set(get_peft_model_state_dict(view, save_embedding_layers=False))
    if unknown:
        raise KeyError(f"底模沒有這些層：{'、'.join(sorted(unknown)[:3])}")


@torch.no_grad()
def merged(view, prompts: Sequence[Sequence[int]]) -> nn.Module:
    """The model with its adapter merged into the weights, after a look at whether it still says the same.

    Args:
        view: as `with_adapter` returns it, in full precision.
        prompts: held-out token ids to compare logits on.

    Raises:
        RunError: some logit differs by more than TOLERANCE.
    """
    view.eval()
    rows = [torch.tensor([list(ids)[:PROMPT_TOKENS]], device=view.device) for ids in prompts]
    if kind_of(view.config) == "choice":  # (questions, options, T)
        rows = [ids[:, None] for ids in rows]
    apart = [view(input_ids=ids).logits.float() for ids in rows]
    model = view.merge_and_unload(safe_merge=True).eval()
    together = [model(input_ids=ids).logits.float() for ids in rows]
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
    """Raises UserError when bitsandbytes, which does the 4-bit arithmetic, is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "--load_in_4bit：沒有安裝 bitsandbytes；pip install -r requirements-4bit.txt，或去掉這個旗標"
        )


def quantization(precision: str, device: torch.device) -> dict:
    """For `models.load_model`: weights as 4-bit NormalFloat with doubly quantized scales, computed in
    `precision` (arXiv:2305.14314, section 3).
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
