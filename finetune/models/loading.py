"""Pretrained models, as language models or with a new head: loaded with what is wrong said aloud.

The hub's names and local folders both work. Nothing runs code that comes with a model
(`trust_remote_code=False`), and weights are read from safetensors only, or on request from a pickle by an
unpickler that makes tensors and calls nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from finetune.evaluation.classification import names_of
from finetune.models import weight_files
from finetune.models.forward import HEADS, MULTI_LABEL, PACKABLE, is_multi
from finetune.models.kinds import CLASSES, NEW_HEAD, is_decoder, kind_of, unfit
from finetune.runtime import hub, untrusted
from finetune.runtime.console import say
from finetune.runtime.errors import UserError
from finetune.runtime.files import rescue

# What libraries raise over files and numbers that make no sense.
SPOILT = (OSError, ValueError, ArithmeticError, RuntimeError, AssertionError, TypeError, LookupError)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTER = "adapter_config.json"  # a folder that holds this holds LoRA weights alone
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", untrusted.INDEX)
PICKLES = ("pytorch_model.bin", untrusted.PICKLED_INDEX)
NO_PICKLE = (
    "pickle 可能夾帶程式，預設不載入；信得過它的來源就加 --allow_pickle，夾帶的程式仍不會執行；"
    "或請先轉成 safetensors"
)
IN_PICKLE = "權重檔是 pickle，裡面不只有張量（夾帶的程式沒有執行）或已損壞，不載入；請向作者要 safetensors 版"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def quiet_libraries() -> None:
    """transformers reports by log lines and bars of its own; what matters is checked here and said once."""
    from transformers.utils import logging

    # Else a model of the hub without safetensors is sent to a service to be made anew, and that is loaded.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def check_source(
    name: str, flag: str, from_scratch: bool = False, allow_pickle: bool = False, whole: bool = False
) -> None:
    """Looks at a model's name before anything is loaded.

    Args:
        allow_pickle: weights may lie in a pickle.
        whole: an adapter will not do.

    Raises:
        UserError: a folder that is not there, has no config.json or no weights, or holds an adapter where
            a whole model is needed; one with files that lead out of it, or that needs code of its own.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and not rescue(folder):
        if folder.exists() or hub.looks_local(name):
            raise UserError(f"{flag} {name}：沒有這個資料夾")
        return
    if (folder / "snapshots").is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{flag} {name}：{hub.no_snapshot(folder)}")
    untrusted.check_folder(name, flag)
    if (folder / ADAPTER).is_file():
        if whole:
            raise UserError(f"{flag} {name}：這裡只有 LoRA 的權重，不是完整的模型")
        if flag == "--model_name_or_path":
            raise UserError(
                f"{flag} {name}：這裡只有 LoRA 的權重，不能接著教；請先不加 --no_merge 訓練，得到合併好的模型"
            )
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise UserError(f"{flag} {name}：沒有 {ADAPTER_WEIGHTS}（pickle 可能夾帶程式，不載入）")
        return
    if not (folder / "config.json").is_file():
        inside = [path.parent for path in sorted(folder.glob("*/config.json"))]
        guess = f"；是不是 {inside[0]}？" if inside else ""
        raise UserError(f"{flag} {name}：資料夾裡沒有 config.json，不是 Hugging Face 格式的模型{guess}")
    if not any((folder / vocabulary).is_file() for vocabulary in VOCABULARIES):
        raise UserError(f"{flag} {name}：沒有 tokenizer（要有 {'、'.join(VOCABULARIES[:2])} 之類的檔案）")
    _check_code(folder, f"{flag} {name}")
    known = (*WEIGHTS, *PICKLES) if allow_pickle else WEIGHTS
    if problems := weight_files.problems(folder, () if from_scratch else known):
        raise UserError([f"{flag} {name}：{problem}" for problem in problems])
    if not from_scratch and not any((folder / weights).is_file() for weights in known):
        pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
        hint = f"只有 {pickled[0]}（{NO_PICKLE}）" if pickled else "沒有 model.safetensors"
        extra = "；要從頭訓練請加 --from_scratch" if flag == "--model_name_or_path" else ""
        raise UserError(f"{flag} {name}：沒有權重。{hint}{extra}")


def _check_code(folder: Path, what: str) -> None:
    """Says that a model's own code is not run. Raises UserError where transformers has none for it."""
    if untrusted.has_code(folder):
        from transformers import CONFIG_MAPPING

        model_type = untrusted.read(folder / "config.json").get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise UserError(untrusted.not_run(what, model_type))
        say(untrusted.ignored(what))


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
        said = untrusted.read(hub.cached(name, "config.json") or Path())
        if said.get("auto_map"):
            raise UserError(untrusted.not_run(f"{flag} {name}", said.get("model_type"))) from error
        raise hub.cannot_fetch("模型", name, flag, error) from error
    if reason := unfit(config, kind, name):
        raise UserError(f"{flag} {name} {reason}")
    if reason := weight_files.quantization(config, taught=flag == "--model_name_or_path"):
        raise UserError(f"{flag} {name}：{reason}")
    if not Path(name).expanduser().is_dir():  # folders are looked at by check_source
        said = untrusted.read(hub.cached(name, "config.json") or Path())
        if problems := untrusted.check_config(said, f"{flag} {name}"):
            raise UserError(problems)
    return config


def classes_of(config) -> list[str]:
    """The labels of a classifier, by class; of another model, none."""
    return names_of(config) if kind_of(config) == "classifier" else []


def name_classes(config, names: Sequence[str], multi: bool) -> None:
    """Makes a configuration that of a classifier with these labels.

    Raises:
        UserError: it is one already, with others.
    """
    known = classes_of(config)
    if known and (known != list(names) or multi != is_multi(config)):
        found, wanted = (
            f"{'多標籤' if several else '單一標籤'}（{'、'.join(labels[:10])}{'…' * (len(labels) > 10)}）"
            for labels, several in ((known, is_multi(config)), (list(names), multi))
        )
        raise UserError(
            f"--model_name_or_path：底模已經是分類模型，標籤依序是{found}，資料的是{wanted}；"
            "資料的標籤都是底模有的、單一或多標籤也相同，才能接著教，否則請換它的底模"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: at for at, name in enumerate(names)}
    config.problem_type = MULTI_LABEL if multi else "single_label_classification"


def check_layers(config, kind: str, flags) -> None:
    """Looks for the layers that --freeze and --train_only name in a model without weights.

    Raises:
        UserError: some are not there; the message says which are.
    """
    import transformers

    from finetune.models.layer_schedule import Layers, learning

    if flags.freeze or flags.train_only:
        with torch.device("meta"):
            model = getattr(transformers, CLASSES[kind]).from_config(config)
        learning(flags.freeze, flags.train_only, 0, 1.0, Layers(model))


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


def _check_fetched(name: str, flag: str) -> None:
    """Looks at a model of the hub as `check_source` does at a folder, before its weights are fetched.

    Raises:
        UserError: an adapter, for which transformers would load another model; shards that lie elsewhere.
    """
    if hub.fetch(name, ADAPTER):
        raise UserError(f"{flag} {name}：這裡只有 LoRA 的權重；請先下載成資料夾，或換成它的底模")
    for file in (untrusted.INDEX, untrusted.PICKLED_INDEX):
        index = hub.fetch(name, file)
        if index and (problems := untrusted.check_index(index, f"{flag} {name}")):
            raise UserError(problems)


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
    same, and they are not. transformers leaves such pairs apart, and its own saving would lose one."""
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
    what transformers chooses."""
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
    say(
        f"模型 {name}：{how}，{model.config.model_type}，{millions:.1f} M 參數，詞彙 "
        f"{model.config.vocab_size}"
    )


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} 讀不懂：{error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} 應該是一個 JSON 物件")
    return value
