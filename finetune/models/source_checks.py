"""Checks on a model folder or hub name before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path

from finetune.models import weight_files
from finetune.runtime import hub, limits, untrusted
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.files import read_json, recover_replace

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


def check_source(
    name: str,
    flag: str,
    from_scratch: bool = False,
    allow_pickle: bool = False,
    whole: bool = False,
    config_only: bool = False,
) -> None:
    """Check a model's folder before anything is loaded; of a hub's name only whether it looks like a folder.

    Args:
        name: a folder or a name on the hub.
        flag: the flag that named it, for messages.
        from_scratch: no weights are needed.
        allow_pickle: weights may be in a pickle.
        whole: an adapter is refused.
        config_only: neither weights nor a tokenizer are needed.

    Raises:
        UserError: a folder that does not exist, has no config.json or no weights, or holds an adapter where
            a whole model is needed; one with links that lead out of it, or that needs code of its own.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and not recover_replace(folder):
        if folder.exists() or hub.looks_local(name):
            raise UserError(f"{flag} {name}：沒有這個資料夾")
        return
    if (folder / "snapshots").is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{flag} {name}：{hub.no_snapshot(folder)}")
    untrusted.check_folder(name, flag)
    if (folder / ADAPTER).is_file():
        if config_only:
            return
        if whole:
            raise UserError(f"{flag} {name}：這裡只有 LoRA 的權重，不是完整的模型")
        if flag == "--model_name_or_path":
            raise UserError(
                f"{flag} {name}：這裡只有 LoRA 的權重，不能接著訓練；"
                "請先不加 --no_merge 訓練，得到合併好的模型"
            )
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise UserError(f"{flag} {name}：沒有 {ADAPTER_WEIGHTS}（pickle 可能夾帶程式，不載入）")
        return
    if not (folder / "config.json").is_file():
        inside = [path.parent for path in sorted(folder.glob("*/config.json"))]
        guess = f"；是不是 {inside[0]}？" if inside else ""
        raise UserError(f"{flag} {name}：資料夾裡沒有 config.json，不是 Hugging Face 格式的模型{guess}")
    if config_only:
        _check_code(folder, f"{flag} {name}")
        return
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
    """Log that a model's own code is not run.

    Raises:
        UserError: transformers has no code for the model.
    """
    if untrusted.has_code(folder):
        from transformers import CONFIG_MAPPING

        model_type = limits.read(folder / "config.json").get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise UserError(untrusted.code_refused(what, model_type))
        log(untrusted.code_ignored(what))


def check_fetched(name: str, flag: str) -> None:
    """Check a model on the hub as `check_source` checks a folder, before its weights are fetched.

    Raises:
        UserError: an adapter, for which transformers would load another model; shards outside the repository.
    """
    if hub.fetch(name, ADAPTER):
        raise UserError(f"{flag} {name}：這裡只有 LoRA 的權重；請先下載成資料夾，或換成它的底模")
    for file in (untrusted.INDEX, untrusted.PICKLED_INDEX):
        index = hub.fetch(name, file)
        if index and (problems := untrusted.check_index(index, f"{flag} {name}")):
            raise UserError(problems)


def base_of(folder: str | Path) -> str:
    """Return the base model that an adapter's folder names; "" for a folder that holds no adapter.

    Raises:
        UserError: adapter_config.json cannot be read, or names no base.
    """
    path = Path(folder).expanduser() / ADAPTER
    if not path.is_file():
        return ""
    base = read_json(path).get("base_model_name_or_path")
    if not base or not untrusted.is_name(base):
        shown = f"{base!r:.60}"
        raise UserError(f"{path}：沒有記載底模（base_model_name_or_path 是 {shown}，應為名稱或資料夾）")
    return base


def check_base(folder: str, flag: str, allow_pickle: bool = False) -> str:
    """Return `base_of` a folder after checking that base: an untrusted adapter may name any folder.

    Raises:
        UserError: the base does not exist, or is no whole model.
    """
    base = base_of(folder)
    if base and hub.looks_local(base) and not Path(base).expanduser().is_dir():
        raise UserError(
            f"{flag} {folder}：這裡只有 LoRA 的權重，它的底模 {base} 不見了；請放回原處，"
            f"或把 {ADAPTER} 的 base_model_name_or_path 改成它現在的位置"
        )
    if base:
        check_source(base, f"{flag} {folder} 的底模", allow_pickle=allow_pickle, whole=True)
    return base
