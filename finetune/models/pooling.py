"""Pooling: how the hidden states of a text's tokens become one vector.

A model that sentence-transformers saved brings it along: `modules.json` lists its parts, each with a small
configuration of its own. They are read here without sentence-transformers, and nothing of them is run: a part
that is not known here is refused by its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models import weight_files
from finetune.models.source_checks import NO_PICKLE
from finetune.runtime import hub, limits, untrusted
from finetune.runtime.errors import UserError, listed, shown
from finetune.runtime.strict_json import decode

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_KEYS = {  # flags of earlier versions of sentence-transformers, in the order of their vectors
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
ACTIVATIONS = {
    name: getattr(nn, name)
    for name in ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "ELU", "LeakyReLU", "Softplus")
}
MODULES = "modules.json"
TRANSFORMER_CONFIGS = tuple(  # the first that exists counts
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODEL_CONFIG = "config_sentence_transformers.json"
WEIGHTS = "model.safetensors"
MOST_MODULES = 16
VECTOR = "sentence_embedding"  # name of the vector of a text among the outputs of the parts
READ = {"method": "forward", "method_output_name": "last_hidden_state"}  # how texts become hidden states
SMALL = 1e-9  # least denominator, as sentence-transformers has it


@dataclass(frozen=True)
class Dense:
    """A linear layer over the vector, and an activation.

    Attributes:
        weight: (out, in).
        bias: (out,); None for none.
        activation: one of ACTIVATIONS.
        residual: (out, in), added as a second linear layer; an empty tensor adds the vector itself; None
            adds nothing.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str = "Tanh"
    residual: Tensor | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Compute (N, in) -> (N, out)."""
        weight, bias = self.weight.to(vectors), None if self.bias is None else self.bias.to(vectors)
        out = ACTIVATIONS[self.activation]()(functional.linear(vectors, weight, bias))
        if self.residual is None:
            return out
        kept = functional.linear(vectors, self.residual.to(vectors)) if self.residual.numel() else vectors
        return out + kept


@dataclass(frozen=True)
class Normalize:
    """Scale vectors to length 1."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Compute (N, H) -> (N, H)."""
        return functional.normalize(vectors, p=2, dim=-1)


@dataclass(frozen=True)
class Pooling:
    """How the hidden states of a text become its vector.

    Attributes:
        modes: some of MODES; the vectors of several stand one after the other.
        include_prompt: the tokens of `prompt` are pooled too.
        steps: computed with the pooled vector, in order.
        max_length: tokens of a text that are read; None for as many as the model can.
        lower_case: texts are lower-cased first.
        prompt: what stands before every text.
        dimension: of the vector only so many numbers are kept, its first ones; None for all.
        brought: it came with the model.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Dense | Normalize, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    dimension: int | None = None
    brought: bool = False

    @property
    def name(self) -> str:
        """Name for people and files: `mean`, `cls+normalize`, `mean+max+dense`."""
        return "+".join((*self.modes, *(type(step).__name__.lower() for step in self.steps)))

    def settings(self) -> list[str]:
        """Return all that decides what the vectors are, as texts to be hashed."""
        read = (self.include_prompt, self.max_length, self.lower_case, self.prompt, self.dimension)
        weights = [
            f"{tensor.shape}{zlib.crc32(tensor.contiguous().numpy().tobytes())}"
            for step in self.steps
            if isinstance(step, Dense)
            for tensor in (step.weight, step.bias, step.residual)
            if tensor is not None
        ]
        activations = [step.activation for step in self.steps if isinstance(step, Dense)]
        return [self.name, *map(str, read), *activations, *weights]

    @property
    def single(self) -> bool:
        """True where one token of each text is read, its first or its last."""
        return self.modes in (("cls",), ("lasttoken",))

    def place(self, length: int, skipped: int) -> int:
        """Return the number of the token that `cls` or `lasttoken` reads, of a text of `length` tokens.

        Args:
            skipped: tokens at its beginning that are not pooled.
        """
        return length - 1 if self.modes == ("lasttoken",) else skipped if skipped < length else 0

    def with_modes(self, mode: str) -> Pooling:
        """Return the pooling that a person asked for: this mode alone, of texts read as the model wants."""
        return replace(self, modes=(mode,), include_prompt=True, steps=(), dimension=None, brought=False)

    def finish(self, vectors: Tensor) -> Tensor:
        """Apply all that follows the pooling to vectors (N, H).

        Raises:
            UserError: a part of the model that takes vectors of another length.
        """
        for step in self.steps:
            if isinstance(step, Dense) and step.weight.shape[1] != vectors.shape[1]:
                raise UserError(
                    f"模型附的 Dense 要 {step.weight.shape[1]} 維的向量，{'+'.join(self.modes)} 得到的是"
                    f" {vectors.shape[1]} 維，兩者不是一套；可用 --pooling mean 等，不照它附的設定"
                )
            vectors = step(vectors)
        return vectors if self.dimension is None else vectors[:, : self.dimension]


DEFAULT = Pooling()


def pool(hidden: Tensor, lengths: Tensor, modes: Sequence[str], skipped: int = 0) -> Tensor:
    """Pool the hidden states of B texts, which follow one another without padding.

    The modes are those of sentence-transformers 6.2 (sentence_transformer/modules/pooling.py):
    `mean_sqrt_len_tokens` divides the sum by the square root of the number of tokens; `weightedmean` weighs
    the first token of a text with 1, the second with 2 and so on (Muennighoff 2022, SGPT, section 3.1).

    Args:
        hidden: (N, H), all tokens of the first text, then those of the second and so on.
        lengths: (B,) tokens of each text, adding up to N.
        modes: some of MODES.
        skipped: tokens at the beginning of each text that are not pooled.

    Returns:
        (B, len(modes) · H)
    """
    hidden = hidden.float()
    ends = lengths.cumsum(0)
    starts = ends - lengths
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)  # (N,)
    numbers = torch.arange(len(hidden), device=hidden.device) - starts[rows]  # of the tokens, in their text
    kept = numbers >= skipped
    weights = {
        "mean": kept.float(),
        "mean_sqrt_len_tokens": kept.float(),
        "weightedmean": (numbers + 1) * kept.float(),
    }
    parts = []
    for mode in modes:
        if mode == "lasttoken":
            parts.append(hidden[ends - 1])
        elif mode == "cls":
            parts.append(hidden[starts + torch.where(lengths > skipped, skipped, 0)])
        elif mode == "max":
            lowest = hidden.new_full((len(lengths), hidden.shape[1]), -torch.inf)
            parts.append(
                lowest.scatter_reduce(0, rows[kept, None].expand_as(hidden[kept]), hidden[kept], "amax")
            )
        else:
            weight = weights[mode]  # (N,)
            sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(
                0, rows, hidden * weight[:, None]
            )
            counts = hidden.new_zeros(len(lengths)).index_add(0, rows, weight).clamp(min=SMALL)
            parts.append(sums / (counts.sqrt() if mode == "mean_sqrt_len_tokens" else counts)[:, None])
    return torch.cat(parts, dim=-1)


# ---- what a model brings -----------------------------------------------------------------------------------


def read_pooling(source: str, flag: str) -> Pooling:
    """Read the pooling that a model brings; DEFAULT where it brings none.

    Args:
        source: a folder, or a name on the hub.
        flag: the flag that named it, for messages.

    Raises:
        UserError: a part that is not known here, a file that cannot be read or is too large.
    """
    files = ModelFiles(source, flag)
    modules = files.read(MODULES)
    if modules is None:
        return DEFAULT
    return _Parts(files, modules).pooling()


class ModelFiles:
    """Small files of a model, a folder or a name on the hub, each checked before it is read."""

    def __init__(self, source: str, flag: str):
        self.source, self.what = source, f"{flag} {source}"
        self.folder = Path(source).expanduser() if Path(source).expanduser().is_dir() else None

    def path(self, name: str) -> Path | None:
        """Return where a file is; None for no such file.

        Raises:
            UserError: it lies outside the model, or is too large.
        """
        if not untrusted.stays_inside(name):
            raise UserError(f"{self.what}：{name[:80]!r} 指到資料夾外面，不讀取")
        path = self.folder / name if self.folder else hub.fetch(self.source, name)
        if path is None or not path.is_file():
            return None
        if self.folder and not untrusted.is_inside(path, self.folder):
            raise UserError(f"{self.what}：{name} 是一個連到資料夾外面的連結，不跟著讀；請換成檔案本身")
        most, size = limits.most_bytes(path.name), path.stat().st_size
        if most and size > most:
            raise UserError(f"{self.what}：{name} 有 {size:,} 個位元組，上限是 {most:,}，不讀取")
        return path

    def read(self, name: str) -> Any:
        """Return the JSON value in a file; None for no such file.

        Raises:
            UserError: it cannot be read, or holds numbers beyond all bounds.
        """
        path = self.path(name)
        if path is None:
            return None
        try:
            value = decode(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.what}：{name} 讀不懂：{str(error)[:200]}") from error
        if problems := limits.check_numbers(value, f"{self.what}：{name}"):
            raise UserError(problems)
        return value

    def read_object(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; {} for no such file. Raises UserError as `read`."""
        value = self.read(name)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self.what}：{name} 應該是一個 JSON 物件")
        return value or {}


class _Parts:
    """The parts that modules.json lists."""

    def __init__(self, files: ModelFiles, modules: object):
        self.files = files
        self.parts = [self._part(module) for module in self._entries(modules)]

    def _entries(self, modules: object) -> list[Any]:
        if not isinstance(modules, list) or not 2 <= len(modules) <= MOST_MODULES:
            raise self.problem(MODULES, f"應是 2 到 {MOST_MODULES} 個部分的清單")
        return modules

    def problem(self, file: str, text: str) -> UserError:
        """Return the error for a file of the model."""
        return UserError(f"{self.files.what}：{file} {text}；可用 --pooling mean 等，不照它附的設定")

    def _part(self, module: object) -> tuple[str, str]:
        """Return (name of the class, folder) of an entry."""
        kind = module.get("type") if isinstance(module, dict) else None
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not isinstance(path, str):
            raise self.problem(MODULES, f"有一項不是部分：{shown(module)}（要有 type 與 path）")
        name = kind.rpartition(".")[2]
        known = ("Transformer", "Pooling", "Dense", "Normalize")
        if name not in known or not kind.startswith("sentence_transformers."):
            raise self.problem(MODULES, f"有這裡不認得的部分 {shown(kind)}，認得的是 {'、'.join(known)}")
        if path and not untrusted.stays_inside(path):
            raise self.problem(MODULES, f"的 path 是 {shown(path)}，指到資料夾外面，不讀取")
        return name, path

    def pooling(self) -> Pooling:
        """Return the pooling that the parts make together."""
        names = [name for name, _ in self.parts]
        if names[:2] != ["Transformer", "Pooling"] or set(names[2:]) - {"Dense", "Normalize"}:
            order = " → ".join(names)
            raise self.problem(
                MODULES, f"的順序是 {order}，這裡只讀 Transformer → Pooling → Dense、Normalize"
            )
        if self.parts[0][1]:
            raise self.problem(MODULES, f"說模型在 {shown(self.parts[0][1])}，這裡只讀資料夾本身的")
        steps = tuple(
            self._dense(path) if name == "Dense" else self._normalize(path) for name, path in self.parts[2:]
        )
        modes, include_prompt = self._modes(f"{self.parts[1][1]}/config.json".lstrip("/"))
        prompt, dimension = self._settings()
        max_length, lower_case = self._reading()
        return Pooling(
            modes, include_prompt, steps, max_length, lower_case, prompt, dimension, brought=True
        )  # fmt: skip

    def _modes(self, file: str) -> tuple[tuple[str, ...], bool]:
        """Return the modes of the pooling, and whether the prompt is pooled."""
        config = self.files.read_object(file)
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for key, mode in OLD_KEYS.items() if config.get(key)] or ["mean"]
        modes = [modes] if isinstance(modes, str) else modes
        if not isinstance(modes, list) or not modes or any(mode not in MODES for mode in modes):
            raise self.problem(file, f"的 pooling_mode 是 {shown(modes)}，認得的是 {'、'.join(MODES)}")
        if unknown := [key for key in config if key.startswith("pooling_mode_") and key not in OLD_KEYS]:
            raise self.problem(file, f"有這裡不認得的 {listed(unknown)}")
        include_prompt = config.get("include_prompt", True)
        if not isinstance(include_prompt, bool):
            raise self.problem(file, f"的 include_prompt 是 {shown(include_prompt)}，應為 true 或 false")
        return tuple(modes), include_prompt

    def _normalize(self, path: str) -> Normalize:
        file = f"{path}/config.json".lstrip("/")
        if path:
            self._check_names(file, self.files.read_object(file))
        return Normalize()

    def _check_names(self, file: str, config: dict[str, Any]) -> None:
        for key in ("module_input_name", "module_output_name"):
            if config.get(key, VECTOR) not in (VECTOR, None):
                raise self.problem(file, f"的 {key} 是 {shown(config[key])}，這裡只讀 {VECTOR}")

    def _dense(self, path: str) -> Dense:
        """Read a linear layer with its weights."""
        file = f"{path}/config.json".lstrip("/")
        config = self.files.read_object(file)
        self._check_names(file, config)
        activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        name = str(activation).rpartition(".")[2]
        if not str(activation).startswith("torch.nn.") or name not in ACTIVATIONS:
            raise self.problem(
                file, f"的 activation_function 是 {shown(activation)}，認得的是 {'、'.join(ACTIVATIONS)}"
            )
        sizes = config.get("out_features"), config.get("in_features")
        if not all(type(size) is int and 0 < size <= 1 << 20 for size in sizes):
            raise self.problem(file, f"的 in_features、out_features 是 {shown(sizes[::-1])}，應為正整數")
        tensors = self._tensors(path)
        weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
        residual = tensors.get("residual.weight") if config.get("use_residual") else None
        if config.get("use_residual") and sizes[0] == sizes[1]:
            residual = torch.empty(0)
        fits = weight is not None and weight.shape == sizes
        fits = fits and (bias is not None) == bool(config.get("bias", True))
        fits = fits and (bias is None or bias.shape == sizes[:1])
        fits = fits and (residual is None or not residual.numel() or residual.shape == sizes)
        if not fits or weight is None:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise self.problem(f"{path}/{WEIGHTS}", f"的形狀 {shown(shapes)} 與 config.json {sizes} 不合")
        return Dense(weight, bias, name, residual)

    def _tensors(self, path: str) -> dict[str, Tensor]:
        """Return the weights of a part, from safetensors only."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = f"{path}/{WEIGHTS}".lstrip("/")
        weights = self.files.path(file)
        if weights is None:
            raise self.problem(file, f"不見了（{NO_PICKLE}）")
        if problems := weight_files.problems(weights.parent, (WEIGHTS,)):
            raise UserError([f"{self.files.what}：{path} 的 {problem}" for problem in problems])
        try:
            return {name: tensor.float() for name, tensor in load_file(weights).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise self.problem(file, f"讀不進來：{str(error)[:200]}") from error

    def _reading(self) -> tuple[int | None, bool]:
        """Return the longest text in tokens, and whether texts are lower-cased."""
        for file in TRANSFORMER_CONFIGS:
            if config := self.files.read_object(file):
                break
        else:
            return None, False
        task = config.get("transformer_task", "feature-extraction")
        if task != "feature-extraction" or config.get("module_output_name", "token_embeddings") != (
            "token_embeddings"
        ):
            raise self.problem(file, f"的 transformer_task 是 {shown(task)}，這裡只讀 feature-extraction")
        inputs = config.get("modality_config", {"text": READ})
        if not isinstance(inputs, dict) or "message" in inputs or inputs.get("text") != READ:
            raise self.problem(
                file, f"的 modality_config 是 {shown(inputs)}，這裡只讀 text（不經對話樣板、各 token 的輸出）"
            )
        longest, lower_case = config.get("max_seq_length"), config.get("do_lower_case", False)
        if longest is not None and not (type(longest) is int and longest > 0):
            raise self.problem(file, f"的 max_seq_length 是 {shown(longest)}，應為正整數")
        if not isinstance(lower_case, bool):
            raise self.problem(file, f"的 do_lower_case 是 {shown(lower_case)}，應為 true 或 false")
        return longest, lower_case

    def _settings(self) -> tuple[str, int | None]:
        """Return the prompt of every text, and how many numbers of a vector are kept."""
        config = self.files.read_object(MODEL_CONFIG)
        name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
        dimension = config.get("truncate_dim")
        if dimension is not None and not (type(dimension) is int and dimension > 0):
            raise self.problem(MODEL_CONFIG, f"的 truncate_dim 是 {shown(dimension)}，應為正整數")
        if name is None:
            return "", dimension
        prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
        if not isinstance(prompt, str) or len(prompt) > limits.TEMPLATE:
            raise self.problem(
                MODEL_CONFIG, f"的 default_prompt_name 是 {shown(name)}，prompts 裡沒有這段文字，或太長"
            )
        return prompt, dimension
