"""The running batch against each prompt by itself, and its own bounds."""

from __future__ import annotations

import random

import pytest
import torch
from families import FAMILIES, WORDS, make
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.models.decoding import Decoding
from finetune.models.generation import Generator, generate_ids
from finetune.models.kv_cache import JOINING, joining_mode
from finetune.models.reply_batch import LENGTH, STOP
from finetune.models.running_batch import RunningBatch
from finetune.runtime.errors import UserError

KINDS = [
    {},
    {"do_sample": True, "temperature": 1.4, "seed": 7},
    {"repetition_penalty": 1.3},
    {"do_sample": True, "seed": 3, "top_k": 9, "top_p": 0.9, "min_p": 0.02},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.6},
    {"min_new_tokens": 9},
    {"stop": ["天", "地玄"]},
]
SIDE_BY_SIDE = ("mamba", "jamba", "rwkv")  # whose rows cannot join
QUICK = ("mistral", "bloom", *SIDE_BY_SIDE)


@pytest.fixture(scope="module")
def qwen(qwen_dir):
    return AutoModelForCausalLM.from_pretrained(qwen_dir).eval(), AutoTokenizer.from_pretrained(qwen_dir)


def requests(seed, count, longest=24, most=20, words=(4, 512)):
    rng = random.Random(seed)
    for number in range(count):
        ids = [rng.randrange(*words) for _ in range(rng.randint(1, longest))]
        yield ids, Decoding(rng.randint(9, most), **KINDS[number % len(KINDS)])


def run(batch, arrivals, seed=0):
    """What is written to each request, where some arrive before each step: text, token ids and reason."""
    rng, waiting, found, rows = random.Random(seed), list(arrivals), {}, []
    while waiting or batch.num_running or batch.num_waiting:
        for ids, decoding in waiting[: (new := rng.choice((0, 0, 1, 3)))]:
            rows.append(batch.add(ids, decoding))
        waiting = waiting[new:]
        for event in batch.step():
            text, ids, reason = found.get(event.row, ("", [], ""))
            assert not reason and not event.error
            found[event.row] = (text + event.text, [*ids, event.token], event.reason)
    return [found[row] for row in rows]


def alone(model, tokenizer, ids, decoding, ends, stops=()):
    """The same of `Generator` and `generate_ids`, of one prompt at a time."""
    (reply,) = Generator(model, tokenizer, decoding, stops, ends).generate([ids])
    return str(reply), LENGTH if reply.truncated else STOP


@pytest.mark.parametrize("prefill_tokens", [512, 10])
def test_a_reply_is_that_of_the_prompt_alone_whenever_it_joins_and_whatever_stands_beside(
    qwen, prefill_tokens
):
    model, tokenizer = qwen
    assert joining_mode(model) == JOINING
    ends, asked = set(range(40, 60)), list(requests(1, 42))
    batch = RunningBatch(model, tokenizer, (), ends, prefill_tokens=prefill_tokens)
    found = run(batch, asked)
    for (text, ids, reason), (prompt, decoding) in zip(found, asked, strict=True):
        assert (text, reason) == alone(model, tokenizer, prompt, decoding, ends)
        whole = generate_ids(model, [prompt], decoding, ends, 3)[0]
        assert ids == whole[: len(ids)] and (len(ids) == len(whole) or decoding.stop)
    assert {reason for _, _, reason in found} == {STOP, LENGTH}


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.nightly) for f in FAMILIES]
)
def test_a_family_writes_what_it_writes_alone_though_its_rows_may_not_join(family, qwen):
    model, ends = make(family), {90, 91, 92}
    asked = list(requests(2, 9, longest=11, most=10, words=(4, WORDS)))
    asked = [(ids, decoding) for ids, decoding in asked if not decoding.stop]
    batch = RunningBatch(model, qwen[1], (), ends, prefill_tokens=8)
    assert joining_mode(model).joins == (family not in SIDE_BY_SIDE) or family not in QUICK
    found = run(batch, asked)
    assert [ids for _, ids, _ in found] == [generate_ids(model, [i], d, ends, 2)[0] for i, d in asked]


def test_a_short_reply_takes_its_own_number_of_steps_beside_a_long_one(qwen):
    batch = RunningBatch(*qwen, (), set())
    long = batch.add([5] * 30, Decoding(60))
    for _ in range(10):
        batch.step()
    short = batch.add([6, 7], Decoding(3))
    reasons = [{event.row: event.reason for event in batch.step()} for _ in range(3)]
    assert [step[short] for step in reasons] == ["", "", LENGTH]
    assert [step[long] for step in reasons] == ["", "", ""]
    assert {event.row for event in batch.step()} == {long}


def test_a_long_prompt_is_read_in_parts_and_running_replies_get_a_token_in_every_step(qwen):
    model, tokenizer = qwen
    batch = RunningBatch(model, tokenizer, (), set(), prefill_tokens=16)
    running = batch.add([5, 6], Decoding(40))
    batch.step()
    read = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    long = batch.add([7] * 100, Decoding(4))
    steps = [[event.row for event in batch.step()] for _ in range(8)]
    handle.remove()
    assert steps == [[running]] * (100 // 16) + [[running, long]] * 2 and max(read) == 16


def test_rows_wait_in_their_order_until_there_is_room_and_memory_does_not_grow_with_time(qwen):
    model, tokenizer = qwen
    batch = RunningBatch(model, tokenizer, (), set(), max_tokens=200)
    widths = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: widths.append(tuple(given["attention_mask"].shape)), with_kwargs=True
    )
    rows = [batch.add(ids, decoding) for ids, decoding in requests(3, 60)]
    first = []
    while batch.num_running or batch.num_waiting:
        first += [event.row for event in batch.step() if event.row.count == 1]
    handle.remove()
    assert first == rows
    assert max(count * width for count, width in widths) <= 200
    longest = max(row.size for row in rows)
    assert max(width for _, width in widths) <= longest and max(count for count, _ in widths) > 3
    alone = batch.add([5] * 190, Decoding(40))  # more than the budget: by itself
    batch.add([5], Decoding(2))
    assert {event.row for _ in range(9) for event in batch.step()} == {alone}


def test_a_row_that_is_removed_leaves_its_place_and_changes_no_other(qwen):
    model, tokenizer = qwen
    asked = list(requests(4, 8))
    expected = [alone(model, tokenizer, *each, {1})[0] for each in asked]
    batch = RunningBatch(model, tokenizer, (), {1}, max_tokens=4 * 44, prefill_tokens=30)
    rows = [batch.add(*each) for each in asked]
    texts = dict.fromkeys(rows, "")
    gone = {rows[at] for at in (0, 2, 5, 7)}
    batch.remove(rows[7])  # waits
    for step in range(99):
        if step == 1:
            batch.remove(rows[0])
        for event in batch.step():
            texts[event.row] += event.text
            if event.row in gone and event.row.count == 3:
                batch.remove(event.row)
    assert not batch.num_running and not batch.num_waiting
    assert [texts[row] for row in rows if row not in gone] == [
        text for row, text in zip(rows, expected, strict=True) if row not in gone
    ]
    assert all(row.count < 9 for row in gone)
    assert batch.clear() == [] and (waiting := batch.add([5], Decoding(3))) in batch.clear()
    assert not batch.step() and waiting.count == 0


def test_a_row_that_cannot_go_on_fails_alone(qwen):
    model, ends = make("llama"), {50, 60}
    decoding = Decoding(12, no_repeat_ngram_size=1, min_new_tokens=12)
    expected = generate_ids(model, [[5, 6]], decoding, ends, 2)[0]
    batch = RunningBatch(model, qwen[1], (), ends)
    good = batch.add([5, 6], decoding)
    batch.step()
    model.model.embed_tokens.weight.data[60] = float("nan")
    broken = [batch.add([7, 60], Decoding(5, repetition_penalty=penalty)) for penalty in (1.0, 1.2)]
    stuck = batch.add([i for i in range(WORDS) if i not in ends], decoding)
    events = [event for _ in range(14) for event in batch.step()]
    errors = {event.row: str(event.error) for event in events if event.error}
    assert set(errors) == {*broken, stuck} and not any(row.count for row in errors)
    assert all("NaN" in errors[row] for row in broken) and "--no_repeat_ngram_size 1" in errors[stuck]
    assert [event.token for event in events if event.row is good] == expected[1:]
    assert good.count == 12 and not batch.num_running
    for prompt in ([], [5] * 128):
        with pytest.raises(UserError, match="token"):
            batch.add(prompt, Decoding(5))
    with pytest.raises(UserError, match="--num_beams 2"):
        batch.add([5], Decoding(5, num_beams=2))


def test_log_probabilities_are_those_of_a_plain_pass_over_prompt_and_reply(qwen):
    model, tokenizer = qwen
    batch = RunningBatch(model, tokenizer, (), set())
    ids = [9, 8, 7, 6]
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 5, "seed": 1, "repetition_penalty": 1.2}
    row = batch.add(ids, Decoding(6, **sampled), 3)
    beside = [batch.add([5] * 9, Decoding(8)), batch.add([4], Decoding(5), 0)]
    events = [event for _ in range(8) for event in batch.step()]
    assert all(event.logprob is None for event in events if event.row is beside[0])
    assert all(event.logprob.top == [] for event in events if event.row is beside[1])
    mine = [event for event in events if event.row is row]
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([[*ids, *(event.token for event in mine)]])).logits[0]
    wanted = whole.log_softmax(-1)[3:-1]
    for event, log_probs in zip(mine, wanted, strict=True):
        assert event.logprob.logprob == pytest.approx(float(log_probs[event.token]), abs=1e-5)
        top, top_ids = log_probs.topk(3)
        assert [token for token, _ in event.logprob.top] == top_ids.tolist()
        assert [value for _, value in event.logprob.top] == pytest.approx(top.tolist(), abs=1e-5)
