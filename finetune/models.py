"""Language models, masked and causal: loaded with what is wrong said aloud, tokenizers repaired, saved.

The hub's names and local folders both work. Nothing runs code that comes with a model
(`trust_remote_code=False`), and weights are read from safetensors only.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import hub
from .cli import say
from .errors import RunError, UserError
from .logits import CAUSAL_CLASSES, HEADS, PACKABLE

CLASSES = {"masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM"}  # classes of transformers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TITLES = {"masked": "填空用的遮罩語言模型", "causal": "接著寫下去的因果語言模型"}
INSTEAD = {
    "masked": "請換 bert-base-chinese 這類有 MLM 輸出層的模型",
    "causal": "請換 Qwen/Qwen2.5-0.5B 這類模型；遮罩語言模型用 --task exam 教",
}
ADAPTER = "adapter_config.json"  # a folder that holds this holds LoRA weights alone
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Tokens that models keep for padding, the likeliest first.
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|fim_pad|>", "<|vision_pad|>", "<|finetune_right_pad_id|>", "<unk>")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def quiet_libraries() -> None:
    """transformers reports by log lines and bars of its own; what matters is checked here and said once."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def check_source(name: str, flag: str, from_scratch: bool = False) -> None:
    """Looks at a model's name before anything is loaded.

    Raises:
        UserError: a folder that is not there, has no config.json or no weights, or holds an adapter where
            a whole model is needed.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or hub.looks_local(name):
            raise UserError(f"{flag} {name}：沒有這個資料夾")
        return
    if (folder / ADAPTER).is_file():
        if flag == "--model_name_or_path":
            raise UserError(
                f"{flag} {name}：這裡只有 LoRA 的權重，不能接著教；請先不加 --no_merge 訓練，得到合併好的模型"
            )
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise UserError(f"{flag} {name}：沒有 {ADAPTER_WEIGHTS}（pickle 可能夾帶程式，不載入）")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{flag} {name}：資料夾裡沒有 config.json，不是 Hugging Face 格式的模型")
    if not any((folder / vocabulary).is_file() for vocabulary in VOCABULARIES):
        raise UserError(f"{flag} {name}：沒有 tokenizer（要有 {'、'.join(VOCABULARIES[:2])} 之類的檔案）")
    if not from_scratch and not any((folder / weights).is_file() for weights in WEIGHTS):
        pickled = [file.name for file in folder.glob("*.bin")]
        hint = (
            f"只有 {pickled[0]}（pickle 可能夾帶程式，不載入；請先轉成 safetensors）"
            if pickled
            else "沒有 model.safetensors"
        )
        extra = "；要從頭訓練請加 --from_scratch" if flag == "--model_name_or_path" else ""
        raise UserError(f"{flag} {name}：沒有權重。{hint}{extra}")


def load_config(name: str, flag: str, kind: str = ""):
    """The model's configuration.

    Args:
        kind: what it must be, `masked` or `causal`; "" takes either, see `kind_of`.

    Raises:
        UserError: not to be had, or a model of another kind.
    """
    from transformers import AutoConfig

    quiet_libraries()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's, its HTTP client's, or a file that makes no sense
        if Path(name).expanduser().is_dir():
            raise UserError(f"{flag} {name}：config.json 讀不懂：{str(error).splitlines()[0]}") from error
        raise hub.cannot_fetch("模型", name, flag, error) from error
    if kind not in ("", kind_of(config)) or not kind_of(config):
        found = "、".join(config.architectures or []) or "未註明架構"
        wanted = TITLES.get(kind) or "、".join(TITLES.values())
        raise UserError(
            f"{flag} {name} 是 {config.model_type} 模型（{found}），不是{wanted}；"
            f"{INSTEAD.get(kind) or '；'.join(INSTEAD.values())}"
        )
    attention = getattr(config, "_attn_implementation", None) or ""
    if "/" in str(attention):
        raise UserError(f"{flag} {name}：config.json 要求執行外來的注意力核心 {attention!r}，不載入")
    return config


def kind_of(config) -> str:
    """`masked`, `causal`, or "" for a model of neither kind."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if any(name.endswith(CAUSAL_CLASSES) for name in config.architectures or []):
        return "causal"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return "masked"
    return "causal" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else ""


def load_tokenizer(name: str, flag: str, kind: str = "masked"):
    """The model's tokenizer, repaired where its vocabulary has no capital letters.

    bert-base-chinese is shipped with `do_lower_case=false` and a vocabulary without capitals: `A`, `DNA`
    and `ATP` all become [UNK]. Lower-casing is switched on when that is so, and is saved with the model.
    One of a causal model gets a padding token of its own where padding is the end of text, or missing.

    Raises:
        UserError: not to be had, or without a mask token (masked) or an end of text (causal).
    """
    from transformers import AutoTokenizer

    quiet_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if kind == "masked" and lacks_capitals(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, do_lower_case=True)
    except (OSError, ValueError) as error:
        if Path(name).expanduser().is_dir():
            raise UserError(f"{flag} {name}：讀不到 tokenizer（要有 tokenizer.json 或 vocab.txt）") from error
        raise hub.cannot_fetch("tokenizer", name, flag, error) from error
    if kind == "causal":
        if tokenizer.eos_token_id is None:
            raise UserError(f"{flag} {name}：tokenizer 沒有結束符號（eos_token），模型學不會停")
        separate_padding(tokenizer)
        return tokenizer
    if tokenizer.mask_token_id is None:
        raise UserError(f"{flag} {name}：tokenizer 沒有 [MASK]，不能用來填空")
    special = [tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    if None in special or len(set(special)) < len(special):
        raise UserError(
            f"{flag} {name}：tokenizer 的 [MASK]、[PAD]、[UNK] 應是三個不同的 token，得到編號 {special}"
        )
    return tokenizer


def separate_padding(tokenizer) -> None:
    """Gives the tokenizer a padding token that is not its end of text: whoever leaves padding out of a loss
    by its id would else never teach a model to stop."""
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    known = tokenizer.get_vocab()
    free = [word for word in PADS if word in known and known[word] != tokenizer.eos_token_id]
    tokenizer.add_special_tokens({"pad_token": free[0] if free else PADS[0]})


def lacks_capitals(tokenizer) -> bool:
    """True when `a` is a token and `A` would become [UNK]."""
    lower, upper = (tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "aA")
    return tokenizer.unk_token_id in upper and tokenizer.unk_token_id not in lower


def prompt_length(config, tokenizer, wanted: int) -> int:
    """The longest prompt in tokens: what was asked for, or what the model's positions allow."""
    positions = getattr(config, "max_position_embeddings", None) or wanted
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions begin after padding's index
        positions -= config.pad_token_id + 1
    return min(wanted, positions, tokenizer.model_max_length)


def load_model(
    name: str, config, tokenizer, flag: str, from_scratch: bool = False, seed: int = 0, **more
) -> nn.Module:
    """A masked or causal language model (as `kind_of` its configuration) in fp32, on the CPU.

    Args:
        from_scratch: random weights from the configuration alone (`seed` fixes them).
        more: for `from_pretrained`: another dtype, quantization.

    Raises:
        UserError: weights that are missing or do not fit: a head that was never trained must not pass
            silently.
    """
    import transformers
    from safetensors import SafetensorError

    kind = kind_of(config)
    head = getattr(transformers, CLASSES[kind])
    if from_scratch:
        torch.manual_seed(seed)
        model = head.from_config(config, attn_implementation=_attention(config))
    else:
        try:
            model, loading = head.from_pretrained(
                name,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                attn_implementation=_attention(config),
                **{"dtype": torch.float32, **more},
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if Path(name).expanduser().is_dir():
                raise UserError(f"{flag} {name}：權重讀不進來：{str(error).splitlines()[0]}") from error
            raise hub.cannot_fetch("模型", name, flag, error) from error
        if missing := sorted(set(loading["missing_keys"]) - _tied_keys(model)):
            raise UserError(
                f"{flag} {name}：權重檔少了 {len(missing)} 個張量（{'、'.join(missing[:3])}…），"
                f"輸出層會是亂數；請換一個含{'語言模型' if kind == 'causal' else ' MLM '}輸出層的模型"
            )
        if mismatched := loading.get("mismatched_keys"):
            raise UserError(f"{flag} {name}：權重的形狀與 config.json 不合：{sorted(mismatched)[:3]}")
    if kind == "causal" and len(tokenizer) == config.vocab_size + 1 == tokenizer.pad_token_id + 1:
        _add_row(model)  # for the padding token that `separate_padding` added
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{flag} {name}：tokenizer 有 {len(tokenizer)} 個 token，模型只有 {config.vocab_size} 個，"
            "兩者不是一套"
        )
    return model


def _attention(config) -> str | None:
    """Scaled dot-product attention, whatever a configuration says, where the family is known to have it; else
    what transformers chooses."""
    return "sdpa" if config.model_type in (*PACKABLE, *HEADS) else None


def _add_row(model: nn.Module) -> None:
    """One more token: its embedding is the mean of the others, the same in every process."""
    model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[-1] = layer.weight[:-1].mean(dim=0)


def _tied_keys(model: nn.Module) -> set[str]:
    """Names of tensors that share another one's storage, so that a file need hold only one of them."""
    first: dict[int, str] = {}
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    } | {name for name in getattr(model, "_tied_weights_keys", None) or ()}


# ---- saving ------------------------------------------------------------------------------------------------


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


def replace_folder(new: Path, target: Path) -> None:
    """Puts a finished folder in the place of an older one, which is whole until the new one stands."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def announce(name: str, model: nn.Module, from_scratch: bool) -> None:
    """One line on what was loaded."""
    how = "從頭建立（亂數權重）" if from_scratch else "已載入"
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
