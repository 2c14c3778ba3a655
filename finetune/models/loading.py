"""Pretrained models, as language models or with a new head: loaded with what is wrong said aloud.

The hub's names and local folders both work. Nothing runs code that comes with a model
(`trust_remote_code=False`), and weights are read from safetensors only, or on request from a pickle by an
unpickler that makes tensors and calls nothing else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from finetune.models import bert, weight_files
from finetune.models.forward import HEADS, PACKABLE
from finetune.models.kinds import CLASSES, NEW_HEAD, is_decoder, kind_of, unfit
from finetune.models.lora import with_adapter
from finetune.models.source_checks import (
    IN_PICKLE,
    NO_PICKLE,
    PICKLES,
    VOCABULARIES,
    WEIGHTS,
    _check_fetched,
    check_base,
)
from finetune.models.tokenizer import load_tokenizer
from finetune.runtime import hub, limits, untrusted
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.hub import quiet_libraries

# What libraries raise over files and numbers that make no sense.
SPOILT = (OSError, ValueError, ArithmeticError, RuntimeError, AssertionError, TypeError, LookupError)


def load_config(name: str, flag: str, kind: str = ""):
    """The model's configuration.

    Args:
        kind: what it must be able to become, one of CLASSES; "" takes any, see `kind_of`. Every base of a
            family that has one can be given a new head (NEW_HEAD).

    Raises:
        UserError: not to be had, or a model of another kind.
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
        said = limits.read(hub.cached(name, "config.json") or Path())
        if said.get("auto_map"):
            raise UserError(untrusted.not_run(f"{flag} {name}", said.get("model_type"))) from error
        raise hub.cannot_fetch("模型", name, flag, error) from error
    if reason := unfit(config, kind, name):
        raise UserError(f"{flag} {name} {reason}")
    if reason := weight_files.quantization(config, taught=flag == "--model_name_or_path"):
        raise UserError(f"{flag} {name}：{reason}")
    if not Path(name).expanduser().is_dir():  # folders are looked at by check_source
        said = limits.read(hub.cached(name, "config.json") or Path())
        if problems := untrusted.check_config(said, f"{flag} {name}"):
            raise UserError(problems)
    return config


def check_layers(config, kind: str, flags) -> None:
    """Looks for the layers that --freeze and --train_only name in a model without weights.

    Raises:
        UserError: some are not there; the message says which are.
    """
    import transformers

    from finetune.models.layer_schedule import LayerGroups, build_schedule

    if flags.freeze or flags.train_only:
        with torch.device("meta"):
            model = getattr(transformers, CLASSES[kind]).from_config(config)
        build_schedule(flags.freeze, flags.train_only, 0, 1.0, LayerGroups(model))


def load_model(
    name: str, config, tokenizer, flag: str, from_scratch: bool = False, seed: int = 0, kind: str = "",
    allow_pickle: bool = False, **more,
) -> nn.Module:  # fmt: skip
    """A model in fp32, on the CPU. `model.new_weights`: names of the parameters of a head that was put on
    here, and is random.

    Args:
        from_scratch: random weights from the configuration alone.
        seed: fixes what is random.
        kind: one of CLASSES; "" is what the model was saved as.
        allow_pickle: where there are no safetensors, weights are read from a pickle.
        more: for `from_pretrained`: another dtype, quantization.

    Raises:
        UserError: weights that are missing or do not fit: a language model's head that was never trained
            must not pass silently.
    """
    from pickle import UnpicklingError

    import transformers
    from safetensors import SafetensorError

    saved_as = kind_of(config)
    kind = kind or saved_as
    head = getattr(transformers, CLASSES[kind])
    torch.manual_seed(seed)
    new: set[str] = set()
    if from_scratch:
        try:
            model = head.from_config(config, attn_implementation=_attention(config))
        except SPOILT as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{flag} {name}：照 config.json 建不出模型：{said}") from error
        new = _head_of(model) if kind in NEW_HEAD else new
    else:
        if not Path(name).expanduser().is_dir():
            _check_fetched(name, flag)
        try:
            model, loading = head.from_pretrained(
                name,
                config=config,
                use_safetensors=None if allow_pickle else True,
                weights_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with both sizes
                attn_implementation=_attention(config),
                **{"dtype": torch.float32, **more},
            )
        except (*SPOILT, SafetensorError, UnpicklingError) as error:
            if isinstance(error, UnpicklingError) or "Weights only load failed" in str(error):
                raise UserError(f"{flag} {name}：{IN_PICKLE}") from error
            if not allow_pickle and f"named {WEIGHTS[0]}" in str(error):
                raise UserError(f"{flag} {name}：hub 上沒有 {WEIGHTS[0]}（{NO_PICKLE}）") from error
            if Path(name).expanduser().is_dir():
                said = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"{flag} {name}：權重讀不進來：{said}") from error
            raise hub.cannot_fetch("模型", name, flag, error) from error
        if not Path(name).expanduser().is_dir() and (fetched := hub.cached(name, "config.json")):
            known = (*WEIGHTS, *PICKLES) if allow_pickle else WEIGHTS
            if problems := weight_files.problems(fetched.parent, known):
                raise UserError([f"{flag} {name}：{problem}" for problem in problems])
        missing = set(loading["missing_keys"]) - _tied_keys(model)
        if kind in NEW_HEAD and saved_as != kind:
            new = missing & _head_of(model)
        if missing - new:
            raise UserError(f"{flag} {name}：{_lacking(model, kind, missing - new)}")
        if mismatched := loading.get("mismatched_keys"):
            raise UserError(f"{flag} {name}：{_misfit(model, mismatched)}")
        if reason := _untied(model):
            raise UserError(f"{flag} {name}：{reason}")
    if (
        tokenizer.mask_token_id is None
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
    model.new_weights = frozenset(new)
    model.config.architectures = [type(model).__name__]
    return model


def _head_of(model: nn.Module) -> set[str]:
    """Names of the parameters on top of the base model; and its pooler's, which a language model has not."""
    body = f"{model.base_model_prefix}."
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if not name.startswith(body) or ".pooler." in name}


def _misfit(model: nn.Module, mismatched) -> str:
    """What is wrong with a file whose tensors have other shapes than the configuration says.

    Args:
        mismatched: (name, shape in the file, shape by the configuration) of each.
    """
    name, found, wanted = sorted((name, tuple(a), tuple(b)) for name, a, b in mismatched)[0]
    more = f"（另有 {len(mismatched) - 1} 個張量也是）" if len(mismatched) > 1 else ""
    words = model.config.get_text_config().vocab_size
    if len(found) == len(wanted) == 2 and found[1] == wanted[1] and wanted[0] == words:
        return (
            f"config.json 的 vocab_size 是 {words}，權重檔的 {name} 卻有 {found[0]} 列，兩者不是一套{more}；"
            "請用同一個模型的 config.json 與權重"
        )
    return f"權重的形狀與 config.json 不合：{name} 在權重檔裡是 {found}，照 config.json 應是 {wanted}{more}"


def _lacking(model: nn.Module, kind: str, missing: set[str]) -> str:
    """What is wrong with a file that lacks these parameters."""
    what = {"masked": "一個含 MLM 輸出層的", "causal": "一個含語言模型輸出層的"}.get(kind, "完整的")
    random = "輸出層" if missing <= _head_of(model) else "這些權重"
    shown = "、".join(sorted(missing)[:3]) + "…" * (len(missing) > 3)
    said = f"權重檔少了 {len(missing)} 個張量（{shown}），{random}會是亂數；請換{what}模型"
    head = model.get_output_embeddings()
    if head is not None and not model.config.tie_word_embeddings:
        own = {name for name, parameter in model.named_parameters() if parameter is head.weight}
        if own & missing:
            said += (
                "。config.json 說輸出層與詞嵌入是兩組權重（tie_word_embeddings 是 false）；"
                '本來就是同一組的話，請改成 "tie_word_embeddings": true'
            )
    return said


def _untied(model: nn.Module) -> str:
    """Why the output weights of a file cannot be kept: they should be the embeddings', or two biases the
    same, and they are not. transformers leaves such pairs apart, and its own saving would lose one.
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


def _attention(config) -> str | None:
    """Scaled dot-product attention, whatever a configuration says, where the family is known to have it; else
    what transformers chooses.
    """
    return "sdpa" if config.model_type in (*PACKABLE, *HEADS) else None


def _add_row(model: nn.Module) -> None:
    """One more token: its embedding is the mean of the others, the same in every process."""
    model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            layer.weight[-1] = layer.weight[:-1].mean(dim=0)


def _tied_keys(model: nn.Module) -> set[str]:
    """Names of tensors that share another one's storage, so that a file need hold only one of them."""
    first: dict[int, str] = {}
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def announce(name: str, model: nn.Module, from_scratch: bool) -> None:
    """One line on what was loaded."""
    how = "從頭建立（亂數權重）" if from_scratch else "已載入"
    if model.new_weights and not from_scratch:
        how += "，換上新的輸出層（亂數，由 --seed 決定）"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    log(
        f"模型 {name}：{how}，{model.config.model_type}，{millions:.1f} M 參數，詞彙 "
        f"{model.config.vocab_size}"
    )


def load(
    name: str, flag: str, from_scratch: bool = False, seed: int = 0, quickly: bool = False,
    allow_pickle: bool = False, **more,
) -> tuple[nn.Module, object]:  # fmt: skip
    """A model from a folder or the hub, whole or as an adapter beside its base; and its tokenizer.

    Args:
        quickly: it is asked a few things by this project alone, see models/bert.py.
        allow_pickle: of a whole model, or of an adapter's base; an adapter's own weights are no pickle.
        more: as `models.load_model` takes it.

    Raises:
        UserError: not to be had, or an adapter that does not belong to its base.
    """
    base = check_base(name, flag, allow_pickle)
    config = load_config(base or name, flag)
    kind = kind_of(config)
    if base and (Path(name).expanduser() / "config.json").is_file():  # a head that the base does not have
        head = load_config(name, flag)  # its vocabulary may have a row for padding, which the base has not
        kind, config.problem_type = kind_of(head), head.problem_type
        config.id2label, config.label2id = head.id2label, head.label2id
    if kind == "masked":
        load_config(base or name, flag, kind)  # whether its head fills blanks
    own = any((Path(name).expanduser() / vocabulary).is_file() for vocabulary in VOCABULARIES)
    tokenizer = load_tokenizer(name if own or not base else base, flag, kind)
    if quickly and not base and (model := bert.load(name, config)) and len(tokenizer) <= config.vocab_size:
        return model, tokenizer
    model = load_model(base or name, config, tokenizer, flag, from_scratch, seed, kind, allow_pickle, **more)
    if base:
        model = with_adapter(model, name, flag).get_base_model()
    return model, tokenizer
