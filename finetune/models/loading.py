"""Load pretrained models, as language models or with a new head, and report what is wrong with their files.

Names on the hub and local folders both work. Nothing runs code that comes with a model
(`trust_remote_code=False`), and weights are read from safetensors only, or on request from a pickle by an
unpickler that makes tensors and calls nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from finetune.models import bert, weight_files
from finetune.models.encoder_decoder import SPECIAL, take_over_special_tokens
from finetune.models.forward import HEADS, PACKABLE, config_of
from finetune.models.kinds import (
    CLASSES,
    FINE_TUNED_AS,
    NEW_HEAD,
    is_decoder,
    kind_of,
    mismatch_reason,
    names_no_head,
)
from finetune.models.lora import with_adapter
from finetune.models.shape import build_empty
from finetune.models.source_checks import (
    IN_PICKLE,
    NO_PICKLE,
    PICKLES,
    VOCABULARIES,
    WEIGHTS,
    check_base,
    check_fetched,
)
from finetune.models.tokenizer import load_tokenizer
from finetune.runtime import hub, limits, untrusted
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.hub import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MODULES = "modules.json"  # the parts of a model as sentence-transformers saves it
POOLER = "pooler."  # weights on top of BERT's first token: no language model has them, no vector needs them
# Exceptions that libraries raise over files and numbers that make no sense.
SPOILT = (OSError, ValueError, ArithmeticError, RuntimeError, AssertionError, TypeError, LookupError)


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a model.

    Attributes:
        from_scratch: initialise the weights at random, from the configuration alone.
        seed: fixes everything that is initialised at random.
        kind: one of CLASSES; "" is the kind that the model was saved as.
        allow_pickle: read weights from a pickle where there are no safetensors. An adapter's own weights are
            never read from a pickle, those of its base may be.
        any_head: only the body is used: a head that cannot do what its kind does is no reason to refuse.
        single_use: this project alone uses the model, for a few prompts; see models/bert.py.
        from_pretrained: keyword arguments for transformers' `from_pretrained`: dtype, quantization, device
            map.
    """

    from_scratch: bool = False
    seed: int = 0
    kind: str = ""
    allow_pickle: bool = False
    any_head: bool = False
    single_use: bool = False
    from_pretrained: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_OPTIONS = LoadOptions()
WITHOUT_HEAD = {  # kind that was asked for -> what to do with a model that has only the body
    "masked": "權重只有編碼器（{classes}），沒有填 [MASK] 的輸出層；可用 --task classify、tag 或 span 訓練"
    "（輸出層另外換上），或以 inference.py --embed 得到向量；要填空請換有 MLM 輸出層的模型",
    "causal": "權重只有本體（{classes}），沒有語言模型的輸出層，不能生成文字；可用 --task classify 訓練"
    "（輸出層另外換上），或以 inference.py --embed 得到向量；要生成請換有輸出層的模型",
}


class NoHeadError(UserError):
    """The weights are those of a body alone, without the language model's head that was asked for."""


def load_config(name: str, flag: str, kind: str = "") -> PreTrainedConfig:
    """Load the configuration of a model.

    Args:
        kind: what the model must be able to become, one of CLASSES; "" takes any, see `kind_of`. Every base
            of a family that has one can be given a new head (NEW_HEAD).

    Raises:
        UserError: the configuration cannot be fetched or read, or the model is of another kind.
    """
    from transformers import AutoConfig

    quiet_libraries()
    if not Path(name).expanduser().is_dir() and (folder := hub.fetch_small(name)):
        untrusted.check_folder(name, flag, folder)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's, its HTTP client's, or a file that makes no sense
        if Path(name).expanduser().is_dir():
            raise UserError(f"{flag} {name}：config.json 讀不懂：{str(error).splitlines()[0]}") from error
        raw = limits.read(hub.cached(name, "config.json") or Path())
        if raw.get("auto_map"):
            raise UserError(untrusted.code_refused(f"{flag} {name}", raw.get("model_type"))) from error
        raise hub.cannot_fetch("模型", name, flag, error) from error
    if reason := mismatch_reason(config, kind, name):
        raise UserError(f"{flag} {name} {reason}")
    if reason := weight_files.quantization(config, training=flag == "--model_name_or_path"):
        raise UserError(f"{flag} {name}：{reason}")
    if not Path(name).expanduser().is_dir():  # check_source has checked folders
        raw = limits.read(hub.cached(name, "config.json") or Path())
        if problems := untrusted.check_config(raw, f"{flag} {name}"):
            raise UserError(problems)
    return config


def check_layers(config: PreTrainedConfig, kind: str, flags: Any) -> None:
    """Check that the layers named by --freeze and --train_only exist, in a model without weights.

    Raises:
        UserError: some layers do not exist; the message says which ones do.
    """
    from finetune.models.layer_groups import LayerGroups
    from finetune.models.layer_schedule import build_schedule
    from finetune.models.shape import build_empty

    if flags.freeze or flags.train_only:
        layers = LayerGroups(build_empty(config, kind))
        build_schedule(flags.freeze, flags.train_only, 0, 1.0, layers)


def load_model(
    name: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    flag: str,
    options: LoadOptions = DEFAULT_OPTIONS,
) -> PreTrainedModel:
    """Load a model in fp32, on the CPU, unless `options.from_pretrained` says otherwise.

    Its attribute `new_weights` holds the names of the parameters of a head that was put on here and is
    initialised at random.

    Raises:
        UserError: weights that are missing or do not fit: a language model's head that was never trained
            must not pass silently.
    """
    saved_as = kind_of(config)
    kind = options.kind or saved_as
    if kind == "seq2seq" and saved_as != kind:  # BART, which fills [MASK] unless this says otherwise
        setattr(config, FINE_TUNED_AS, kind)
    auto_class = _auto_class(config, kind)
    torch.manual_seed(options.seed)
    new: set[str] = set()
    if options.from_scratch:
        try:
            model = auto_class.from_config(config, attn_implementation=_attention(config))
        except SPOILT as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{flag} {name}：照 config.json 建不出模型：{reason}") from error
        new = _head_of(model) if kind in NEW_HEAD else new
    else:
        if kind in NEW_HEAD and (in_4bit := options.from_pretrained.get("quantization_config")):
            # a head has no weights in the file yet, and random ones are not to be rounded
            names = _head_of(build_empty(config, kind))
            in_4bit.llm_int8_skip_modules = sorted({name.rpartition(".")[0] for name in names})
        model, report = _from_pretrained(auto_class, name, config, flag, options)
        missing = set(report["missing_keys"]) - _tied_keys(model)
        if kind in NEW_HEAD and saved_as != kind:
            new = missing & _head_of(model)
        if kind == "encoder":  # what is no part of its vectors
            missing = {key for key in missing if not key.startswith(POOLER)}
        if kind in WITHOUT_HEAD and missing and missing <= _head_of(model) and _may_lack_head(name, config):
            raise NoHeadError(f"{flag} {name}：{WITHOUT_HEAD[kind].format(classes=_classes(config))}")
        if missing - new:
            raise UserError(f"{flag} {name}：{_describe_missing(model, kind, missing - new)}")
        if mismatched := report.get("mismatched_keys"):
            raise UserError(f"{flag} {name}：{_describe_mismatch(model, mismatched)}")
        if reason := _untied(model):
            raise UserError(f"{flag} {name}：{reason}")
    if (
        kind != "encoder"
        and tokenizer.mask_token_id is None
        and len(tokenizer) == config.vocab_size + 1 == tokenizer.pad_token_id + 1
    ):
        _add_row(model)  # for the padding token that `separate_padding` added
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{flag} {name}：tokenizer 有 {len(tokenizer)} 個 token，模型只有 {config.vocab_size} 個，"
            "兩者不是一套"
        )
    if kind in NEW_HEAD and (is_decoder(config) or getattr(config, "pad_token_id", None) is None):
        # By it a decoder finds the last token of a row. Encoders that have one may count positions from it.
        model.config.pad_token_id = tokenizer.pad_token_id
    if kind == "seq2seq":
        take_over_special_tokens(model, tokenizer)
    model.new_weights = frozenset(new)
    model.config.architectures = [type(model).__name__]
    return model


def _auto_class(config: PreTrainedConfig, kind: str) -> Any:
    """Return the class of transformers that loads a model of this kind."""
    import transformers

    if kind == "encoder" and kind_of(config) == "encoder":
        return transformers.AutoModelForTextEncoding  # of T5 the encoder; AutoModel would want a decoder too
    return getattr(transformers, CLASSES[kind])


def _may_lack_head(name: str, config: PreTrainedConfig) -> bool:
    """Return whether the weights of a language model may be those of its body alone.

    sentence-transformers saves the body, and has left the name of the whole model in config.json.
    """
    folder = Path(name).expanduser()
    beside = (folder / MODULES).is_file() if folder.is_dir() else hub.cached(name, MODULES) is not None
    return names_no_head(config) or beside


def _classes(config: PreTrainedConfig) -> str:
    return "、".join(config.architectures or []) or "未註明架構"


def _from_pretrained(
    auto_class: Any, name: str, config: PreTrainedConfig, flag: str, options: LoadOptions
) -> tuple[Any, dict[str, Any]]:
    """Return the model and transformers' report on its weights: missing keys, keys of other shapes.

    Raises:
        UserError: weights that cannot be fetched or read.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    allow_pickle = options.allow_pickle
    if not Path(name).expanduser().is_dir():
        check_fetched(name, flag)
    try:
        model, report = auto_class.from_pretrained(
            name,
            config=config,
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `load_model` refuses these, with both sizes in the message
            attn_implementation=_attention(config),
            **{"dtype": torch.float32, **options.from_pretrained},
        )
    except (*SPOILT, SafetensorError, UnpicklingError) as error:
        if isinstance(error, UnpicklingError) or "Weights only load failed" in str(error):
            raise UserError(f"{flag} {name}：{IN_PICKLE}") from error
        if not allow_pickle and f"named {WEIGHTS[0]}" in str(error):
            raise UserError(f"{flag} {name}：hub 上沒有 {WEIGHTS[0]}（{NO_PICKLE}）") from error
        if Path(name).expanduser().is_dir():
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{flag} {name}：權重讀不進來：{reason}") from error
        raise hub.cannot_fetch("模型", name, flag, error) from error
    if not Path(name).expanduser().is_dir() and (fetched := hub.cached(name, "config.json")):
        known = (*WEIGHTS, *PICKLES) if allow_pickle else WEIGHTS
        if problems := weight_files.problems(fetched.parent, known):
            raise UserError([f"{flag} {name}：{problem}" for problem in problems])
    return model, report


def _head_of(model: Any) -> set[str]:
    """Return names of parameters on top of the base model, and of its pooler: no language model has one."""
    body = f"{model.base_model_prefix}."
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if not name.startswith(body) or ".pooler." in name}


def _describe_mismatch(
    model: PreTrainedModel, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]
) -> str:
    """Describe a file whose tensors have other shapes than the configuration says.

    Args:
        mismatched: (name, shape in the file, shape by the configuration) of each.
    """
    rows = sorted((name, tuple(a), tuple(b)) for name, a, b in mismatched)
    name, saved, wanted = rows[0]
    others = f"（另有 {len(rows) - 1} 個張量也是）" if len(rows) > 1 else ""
    vocab_size = model.config.get_text_config().vocab_size
    if len(saved) == len(wanted) == 2 and saved[1] == wanted[1] and wanted[0] == vocab_size:
        return (
            f"config.json 的 vocab_size 是 {vocab_size}，權重檔的 {name} 卻有 {saved[0]} 列，"
            f"兩者不是一套{others}；請用同一個模型的 config.json 與權重"
        )
    return f"權重的形狀與 config.json 不合：{name} 在權重檔裡是 {saved}，照 config.json 應是 {wanted}{others}"


def _describe_missing(model: PreTrainedModel, kind: str, missing: set[str]) -> str:
    """Describe a file that lacks these parameters."""
    wanted = {"masked": "一個含 MLM 輸出層的", "causal": "一個含語言模型輸出層的"}.get(kind, "完整的")
    random = "輸出層" if missing <= _head_of(model) else "這些權重"
    shown = "、".join(sorted(missing)[:3]) + "…" * (len(missing) > 3)
    message = f"權重檔少了 {len(missing)} 個張量（{shown}），{random}會是隨機初始化的；請換{wanted}模型"
    head = model.get_output_embeddings()
    if head is not None and not model.config.tie_word_embeddings:
        head_names = {name for name, parameter in model.named_parameters() if parameter is head.weight}
        if head_names & missing:
            message += (
                "。config.json 說輸出層與詞嵌入是兩組權重（tie_word_embeddings 是 false）；"
                '本來就是同一組的話，請改成 "tie_word_embeddings": true'
            )
    return message


def _untied(model: PreTrainedModel) -> str:
    """Return why weights that should be shared but differ in the file cannot be kept; "" where none do.

    Shared are output weights and embeddings, or two biases. transformers keeps such pairs apart, and its own
    saving would lose one.
    """
    apart = {
        name: other
        for name, other in model.get_expanded_tied_weights_keys(all_submodels=True).items()
        if model.get_parameter(name) is not model.get_parameter(other)
    }
    if not apart:
        return ""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        return (
            "config.json 說輸出層與詞嵌入是同一組權重（tie_word_embeddings），權重檔裡兩者卻不同，"
            '照它存檔會丟掉輸出層；兩者本來就不同的話，請在 config.json 寫 "tie_word_embeddings": false'
        )
    name, other = next(iter(apart.items()))
    return f"{name} 與 {other} 應是同一組權重，權重檔裡卻不同，只留得下一個；請從檔案刪去不用的那一個"


def _attention(config: PreTrainedConfig) -> str | None:
    """Return the attention implementation: scaled dot-product where the family is known to have it.

    For such a family this overrides the configuration; None leaves the choice to transformers.
    """
    return "sdpa" if config.model_type in (*PACKABLE, *HEADS) else None


def _add_row(model: PreTrainedModel) -> None:
    """Add a token whose embedding is the mean of the others, the same in every process."""
    model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            layer.weight[-1] = layer.weight[:-1].mean(dim=0)


def _tied_keys(model: nn.Module) -> set[str]:
    """Return names of tensors that share another one's storage: a file need hold only one of them."""
    first: dict[int, str] = {}
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def announce(name: str, model: nn.Module, from_scratch: bool) -> None:
    """Log one line on the model that was loaded."""
    state = "從頭建立（隨機初始化）" if from_scratch else "已載入"
    if model.new_weights and not from_scratch:
        state += "，換上新的輸出層（隨機初始化，由 --seed 決定）"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    config = config_of(model)
    log(f"模型 {name}：{state}，{config.model_type}，{millions:.1f} M 參數，詞彙 {config.vocab_size}")


def load(
    name: str, flag: str, options: LoadOptions = DEFAULT_OPTIONS
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model from a folder or the hub, whole or as an adapter beside its base, and its tokenizer.

    Raises:
        UserError: the model cannot be fetched or read, or an adapter does not belong to its base.
    """
    base = check_base(name, flag, options.allow_pickle)
    config = load_config(base or name, flag, options.kind)
    kind = options.kind or kind_of(config)
    if base and (Path(name).expanduser() / "config.json").is_file():  # a head that the base does not have
        head = load_config(name, flag)  # its vocabulary may have a row for padding, which the base has not
        kind, config.problem_type = kind_of(head), head.problem_type
        config.id2label, config.label2id = head.id2label, head.label2id
        for attribute in (FINE_TUNED_AS, *SPECIAL):
            value = getattr(head, attribute, None)
            # padding may be a token beyond the rows of the base: `load_model` adds one, and sets its id
            added = isinstance(value, int) and value >= config.vocab_size
            if value is not None and not added:
                setattr(config, attribute, value)
    if kind in WITHOUT_HEAD and not base and _may_lack_head(name, config):
        loaded = _load_body(name, config, flag, replace(options, kind=kind))
        if loaded is not None:
            return loaded
    if kind == "masked" and options.any_head and mismatch_reason(config, kind, base or name):
        kind = "encoder"
    if kind == "masked":
        load_config(base or name, flag, kind)  # refuses a model whose head cannot fill blanks
    has_tokenizer = any((Path(name).expanduser() / vocabulary).is_file() for vocabulary in VOCABULARIES)
    tokenizer = load_tokenizer(name if has_tokenizer or not base else base, flag, kind)
    if options.single_use and not base:
        plain = bert.load(name, config)
        if plain and len(tokenizer) <= config.vocab_size:
            return cast("PreTrainedModel", plain), tokenizer  # it has what this project uses of one
    model = load_model(base or name, config, tokenizer, flag, replace(options, kind=kind))
    if base:
        model = cast("PreTrainedModel", with_adapter(model, name, flag).get_base_model())
    return model, tokenizer


def _load_body(
    name: str, config: PreTrainedConfig, flag: str, options: LoadOptions
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Load a model that has no head, as an encoder; None for one whose weights hold the head after all.

    Args:
        options: their `kind` is that of the head the model would have.
    """
    tokenizer = load_tokenizer(name, flag, "encoder")
    try:
        load_model(name, config, tokenizer, flag, options)
        return None
    except NoHeadError:
        log(f"{flag} {name}：權重只有本體（{_classes(config)}），沒有輸出層；當作編碼器載入，可得到向量")
    return load_model(name, config, tokenizer, flag, replace(options, kind="encoder")), tokenizer
