"""Causal models of many families: each is read in a manner that gives what the model says, or refused."""

from __future__ import annotations

import random

import pytest
import torch
from families import FAMILIES, WORDS, make

from finetune.models.generation import GREEDY, Decoding, generate_ids
from finetune.models.heads import forward_of
from finetune.models.kv_cache import BEST, decode_mode
from finetune.models.padding import padded
from finetune.runtime.errors import UserError

PAD = 2
RNG = random.Random(1)
ROWS = [[RNG.randrange(4, WORDS) for _ in range(count)] for count in (3, 11, 2, 7)]
ENDS = {90, 91, 92}
ASKED = ({}, {"repetition_penalty": 1.3}, {"num_beams": 3})
# Whose cache transformers itself cannot use, or not for beams.
ANEW = ("minimax", "recurrent_gemma", "rwkv", "xlstm")
# The positions that transformers hands to these begin at 0; in the models' own passes, which trained them,
# after the id of padding.
SHIFTED = ("roberta",)
QUICK = ("mamba", "recurrent_gemma", "rwkv", "minimax", "jamba")


def some(quick):
    return [pytest.param(f, marks=() if f in quick else pytest.mark.nightly) for f in FAMILIES]


def theirs(model, family, row, **asked):
    """Tokens that `generate` of transformers writes after one row; for some families, those of the model's
    own greedy passes."""
    if family in SHIFTED:
        ids = list(row)
        while len(ids) < len(row) + 8 and not ENDS & set(ids[len(row) :]):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(row) :]
    asked = {
        "do_sample": False,
        "max_new_tokens": 8,
        "pad_token_id": PAD,
        "eos_token_id": sorted(ENDS),
        **asked,
    }
    ids = torch.tensor([row])
    more = {"use_cache": False} if family in ANEW else {}
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **asked, **more)
    found = found[0, len(row) :].tolist()
    return found[: next((at + 1 for at, token in enumerate(found) if token in ENDS), len(found))]


@pytest.mark.parametrize("family", some(QUICK))
def test_a_family_writes_what_generate_writes_alone_and_in_a_padded_batch(family):
    model = make(family)
    for asked in ({},) if family in SHIFTED else ASKED:
        expected = [theirs(model, family, row, **asked) for row in ROWS]
        decoding = Decoding(8, **asked)
        assert generate_ids(model, ROWS, decoding, ENDS, PAD) == expected, asked
        assert [generate_ids(model, [row], decoding, ENDS, PAD)[0] for row in ROWS] == expected, asked
        assert len({tuple(row) for row in expected}) > 1


@pytest.mark.parametrize("family", some(("mamba", "rwkv", "bart", "xlstm")))
@torch.no_grad()
def test_logits_at_chosen_positions_are_those_of_a_row_alone_whatever_stands_beside(family):
    model = make(family)
    ids, mask = padded(ROWS, PAD)
    rows = torch.tensor([number for number, row in enumerate(ROWS) for _ in row])
    cols = torch.tensor([at for row in ROWS for at in range(len(row))])
    found = forward_of(model).eval()(ids, mask, rows, cols)
    alone = torch.cat([model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])
    torch.testing.assert_close(found, alone, atol=1e-3, rtol=1e-3)


def test_a_family_that_cannot_be_read_in_the_fastest_manner_is_named_once(capsys):
    model = make("rwkv")
    for _ in range(2):
        generate_ids(model, ROWS, GREEDY, {*range(WORDS)}, PAD)
    assert capsys.readouterr().err.splitlines() == [
        "rwkv 模型：不支援 KV 快取：每生成一個 token 都重算整段（較慢）；不支援批次補齊，一次只生成一個提示"
    ]
    assert decode_mode(make("llama")) == BEST and not capsys.readouterr().err


def test_a_cache_is_passed_by_the_name_that_a_family_knows_it_by():
    model = make("mamba")
    assert decode_mode(model).cached
    read = []
    model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    generate_ids(model, ROWS[1:2], Decoding(4), set(), PAD)
    assert read == [11, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rounding_takes_no_familys_cache_away(family, dtype):
    assert decode_mode(make(family, num_hidden_layers=12).to(dtype)) == BEST


@pytest.mark.parametrize("family, changes", [("xlm", {}), ("bert", {"is_decoder": False})])
def test_a_model_that_does_not_read_from_left_to_right_is_refused(family, changes):
    with pytest.raises(UserError, match=f"{family} 模型.*不是由左到右的因果模型"):
        generate_ids(make(family, **changes), ROWS, GREEDY, ENDS, PAD)


def test_a_model_whose_logits_are_no_numbers_is_refused_before_it_writes():
    model = make("llama")
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(UserError, match="輸出 NaN 或無限大.*--precision fp32"):
        generate_ids(model, ROWS, GREEDY, ENDS, PAD)
