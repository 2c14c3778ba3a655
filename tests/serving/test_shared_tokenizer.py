"""A tokenizer that is used by many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from conftest import HAN
from transformers import AutoTokenizer

from finetune.serving.shared_tokenizer import lock_tokenizer


def test_calls_that_cut_and_split_in_other_ways_at_once_get_what_they_get_alone(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    lock_tokenizer(tokenizer)
    text = HAN * 20 + "[SEP]"
    ways = [
        {"truncation": True, "max_length": length, "split_special_tokens": split}
        for length in (8, 50, 200)
        for split in (True, False)
    ] + [{"add_special_tokens": False}, {"split_special_tokens": True}]
    alone = [tokenizer(text, **way)["input_ids"] for way in ways]

    def call(number: int) -> bool:
        way = number % len(ways)
        ids = tokenizer(text, **ways[way])["input_ids"]
        return ids == alone[way] and bool(tokenizer.decode(ids[:20]))

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(2000)))
