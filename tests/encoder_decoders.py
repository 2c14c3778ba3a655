"""Tiny encoder-decoders of four families, with tokenizers of their own kind, made here."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import HAN, make_vocabulary
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BertTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    T5Tokenizer,
)

MARKS = "，。：？！0123456789abc"
LETTERS = [*dict.fromkeys(HAN + MARKS)]
T5 = {
    "d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4, "d_ff": 64, "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "dropout": 0.0,
}  # fmt: skip
CHINESE_BART = {
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
    "forced_eos_token_id": 3,
}  # fmt: skip
FAMILIES = ("t5", "mt5", "bart", "mbart", "mbart50")


def pieces(*special: str) -> list[tuple[str, float]]:
    """A SentencePiece vocabulary of single characters."""
    return [*((word, 0.0) for word in special), ("▁", -2.0), *((word, -3.0) for word in LETTERS)]


def make_tokenizer(family: str):
    """The tokenizer of a family; that of `bart` is BERT's, as fnlp/bart-base-chinese has it."""
    if family == "bart":
        words = make_vocabulary()
        vocabulary = {word: at for at, word in enumerate(words)}
        return BertTokenizer(vocab=vocabulary, do_lower_case=False, eos_token="[SEP]")
    if family in ("t5", "mt5"):
        return T5Tokenizer(vocab=pieces("<pad>", "</s>", "<unk>"), extra_ids=2)
    kind = MBartTokenizer if family == "mbart" else MBart50Tokenizer
    return kind(vocab=pieces("<s>", "<pad>", "</s>", "<unk>"), src_lang="en_XX", tgt_lang="zh_CN")


def make(family: str, spread: float = 0.25, **changes):
    """(model, tokenizer): in fp32, with random weights so large that every token matters."""
    tokenizer = make_tokenizer(family)
    shape = T5 if family in ("t5", "mt5") else BART | (CHINESE_BART if family == "bart" else {})
    shape |= {"decoder_start_token_id": 2} if family == "mbart50" else {}
    torch.manual_seed(0)
    model_type = family.removesuffix("50")
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **{**shape, **changes})
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    model.config.fine_tuned_as = "seq2seq"
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and weight.std() < 0.6 * spread:
                weight.normal_(0, spread)
    return model, tokenizer


def save(folder: Path, family: str, spread: float = 0.25, **changes) -> Path:
    """A folder in Hugging Face's format, as a base model is: it does not say that it writes texts."""
    model, tokenizer = make(family, spread, **changes)
    del model.config.fine_tuned_as
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
