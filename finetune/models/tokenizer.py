"""Load tokenizers of models of all kinds, and repair those that do not match their model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.models.kinds import NEW_HEAD
from finetune.models.padding import MULTIPLE
from finetune.models.tokenizer_checks import try_tokenizer
from finetune.runtime import hub, limits, untrusted
from finetune.runtime.console import log
from finetune.runtime.errors import UserError
from finetune.runtime.hub import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Tokens that models reserve for padding, the likeliest first.
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|fim_pad|>", "<|vision_pad|>", "<|finetune_right_pad_id|>", "<unk>")
# Families whose positions are counted from the one after padding's id.
AFTER_PADDING = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text",
    "longformer", "luke", "mpnet",
)  # fmt: skip


def load_tokenizer(name: str, flag: str, kind: str = "masked") -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, and repair it where its vocabulary has no capital letters.

    bert-base-chinese is shipped with `do_lower_case=false` and a vocabulary without capitals: `A`, `DNA`
    and `ATP` all become [UNK]. Lower-casing is switched on in such a case, and is saved with the model.
    The tokenizer of a causal model gets a padding token of its own where padding is missing, or is the end of
    text.

    Args:
        name: a folder or a name on the hub.
        flag: the flag that named it, for messages.
        kind: one of CLASSES. A model with a new head is treated as its base: as masked where the tokenizer
            has a mask token, else as causal. That of an encoder stays as it is.

    Raises:
        UserError: the tokenizer cannot be fetched or read, or has no mask token (masked), no end of text
            (causal, seq2seq) or no padding (seq2seq).
    """
    from transformers import AutoTokenizer

    quiet_libraries()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        try_tokenizer(tokenizer, f"{flag} {name}")
        if kind in NEW_HEAD:
            kind = "causal" if tokenizer.mask_token_id is None else "masked"
        if kind in ("masked", "seq2seq") and lacks_capitals(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, do_lower_case=True)
    except UserError:
        raise
    except Exception as error:  # the hub's, its HTTP client's, or files that make no sense: each its own
        if "tiktoken" in str(error):  # what transformers asks for where the two libraries below are missing
            raise UserError(
                f"{flag} {name}：tokenizer 是 SentencePiece 的檔案（spiece.model），沒有 tokenizer.json；"
                "讀它要 pip install sentencepiece protobuf"
            ) from error
        if Path(name).expanduser().is_dir():
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{flag} {name}：讀不到 tokenizer（要有完好的 tokenizer.json 或 vocab.txt）：{reason}"
            ) from error
        raise hub.cannot_fetch("tokenizer", name, flag, error) from error
    _log_ignored_code(name, flag)
    if kind == "encoder":
        return tokenizer  # padding is masked, whatever its token is
    if kind == "causal":
        if tokenizer.eos_token_id is None:
            _set_eos_from_config(tokenizer, name)
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{flag} {name}：沒有結束符號，模型學不會停；請在 tokenizer_config.json 寫明 eos_token，"
                "或在 config.json 寫明 eos_token_id"
            )
        if added := separate_padding(tokenizer):
            log(f"  tokenizer 沒有 padding token，改用 {added}")
        return tokenizer
    if kind == "seq2seq":
        _check_text_ends(tokenizer, name, flag)
        return tokenizer
    if tokenizer.mask_token_id is None:
        raise UserError(f"{flag} {name}：tokenizer 沒有 [MASK]，不能用來填空")
    special = [tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    if None in special or len(set(special)) < len(special):
        raise UserError(
            f"{flag} {name}：tokenizer 的 [MASK]、[PAD]、[UNK] 應是三個不同的 token，得到編號 {special}"
        )
    return tokenizer


def _log_ignored_code(name: str, flag: str) -> None:
    """Log that the code of a model on the hub is not run; for a folder `check_source` logs it."""
    config = None if Path(name).expanduser().is_dir() else hub.cached(name, "config.json")
    if config and untrusted.has_code(config.parent):
        log(untrusted.code_ignored(f"{flag} {name}"))


def _set_eos_from_config(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer without an EOS token the one that the model's configuration names.

    A tokenizer.json alone does not say which of its tokens is the end of text.
    """
    folder = Path(name).expanduser()
    for file in ("generation_config.json", "config.json"):
        path = folder / file if folder.is_dir() else hub.cached(name, file)
        ids = limits.read(path).get("eos_token_id") if path else None
        for token in ids if isinstance(ids, list) else [ids]:
            if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < len(tokenizer):
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
                log(f"  tokenizer 沒有註明結束符號，照 {file} 用 {tokenizer.eos_token}")
                return


def _check_text_ends(tokenizer: PreTrainedTokenizerBase, name: str, flag: str) -> None:
    """Check that the tokenizer of an encoder-decoder has padding and an end of text.

    BERT's tokenizer, which fnlp/bart-base-chinese has, ends a text with [SEP].

    Raises:
        UserError: one of them is missing, or both are the same.
    """
    if tokenizer.eos_token_id is None:
        _set_eos_from_config(tokenizer, name)
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    missing = {"eos_token（結束符號）": tokenizer.eos_token_id, "pad_token（補齊用）": tokenizer.pad_token_id}
    if lacking := [title for title, token in missing.items() if token is None]:
        raise UserError(
            f"{flag} {name}：tokenizer 沒有 {'、'.join(lacking)}，不能用來轉換文字；"
            "請在 tokenizer_config.json 寫明，或換 google/mt5-small、fnlp/bart-base-chinese 這類模型"
        )
    if tokenizer.eos_token_id == tokenizer.pad_token_id:
        raise UserError(
            f"{flag} {name}：tokenizer 的 eos_token 與 pad_token 是同一個（{tokenizer.eos_token}），"
            "模型學不會停；請在 tokenizer_config.json 寫成兩個不同的 token"
        )


def separate_padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer a padding token that is not its end of text.

    A loss that ignores padding by its id would otherwise never train a model to stop.

    Returns:
        The new padding token; "" where the tokenizer has one of its own.
    """
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return ""
    vocabulary = tokenizer.get_vocab()
    free = [word for word in PADS if word in vocabulary and vocabulary[word] != tokenizer.eos_token_id]
    tokenizer.add_special_tokens({"pad_token": free[0] if free else PADS[0]})
    return tokenizer.pad_token


def lacks_capitals(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether `a` is a token and `A` would become [UNK]."""
    lower, upper = (tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "aA")
    return tokenizer.unk_token_id in upper and tokenizer.unk_token_id not in lower


def prompt_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, wanted: int) -> int:
    """Return the longest prompt in tokens: the wanted length, or what the model's positions allow.

    Rows are padded to a MULTIPLE of tokens, for which there must be positions too.
    """
    limit = positions(config, 0)
    room = max(limit - limit % MULTIPLE, min(limit, MULTIPLE)) or wanted
    return min(wanted, room, tokenizer.model_max_length)


def positions(config: PreTrainedConfig, wanted: int) -> int:
    """Return how many tokens a model has positions for; `wanted` where it has no limit."""
    try:
        count = getattr(config, "max_position_embeddings", None) or wanted
    except NotImplementedError:  # XLNet's configuration says so that it has no limit
        return wanted
    return count - config.pad_token_id - 1 if config.model_type in AFTER_PADDING else count
