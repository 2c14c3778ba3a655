"""Our decoding against `generate` of transformers, and its texts against the tokenizer's own."""

import random
from contextlib import contextmanager

import pytest
import torch
from conftest import HAN, make_causal_dir
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation import logits_process

from finetune.models.decoding import GREEDY, Decoding
from finetune.models.generation import Generator, eos_ids
from finetune.models.generation import generate_ids as ours
from finetune.models.kv_cache import NO_TOKEN
from finetune.models.logits import filtered, processed
from finetune.models.streaming import STOPS, Reply, Writer, cut_at_stops
from finetune.runtime.errors import UserError

PAD = 3
PROMPTS = ["天地", "玄黃宇宙洪荒日月盈昃", "User: 題目 A B C D\nAssistant:", "寒來暑往秋", "金"]


def load(folder, **more):
    return AutoModelForCausalLM.from_pretrained(folder, **more).eval(), AutoTokenizer.from_pretrained(folder)


def generate(model, tokenizer, prompts, decoding=GREEDY, on_done=None, **options):
    return Generator(model, tokenizer, decoding, **options).generate(prompts, on_done)


@pytest.fixture(scope="module")
def qwen(qwen_dir):
    return load(qwen_dir)


@pytest.fixture(scope="module")
def llama(llama_dir):
    return load(llama_dir)


@pytest.fixture(params=["qwen", "llama"])
def world(request):
    return request.getfixturevalue(request.param)


def some_rows(seed, count=5, longest=20):
    rng = random.Random(seed)
    return [[rng.randrange(4, 512) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def until(row, ends):
    """Up to the first of `ends`; what follows in a batch is padding."""
    return row[: next((at + 1 for at, token in enumerate(row) if token in ends), len(row))]


def theirs(model, rows, ends, **asked):
    width = max(map(len, rows))
    ids = torch.tensor([[*[PAD] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[*[0] * (width - len(row)), *[1] * len(row)] for row in rows])
    asked = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": sorted(ends), **asked}
    found = model.generate(input_ids=ids, attention_mask=mask, **asked)[:, width:].tolist()
    return [until(row, ends) for row in found]


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@contextmanager
def watched(model, script=None):
    """The token ids of every forward pass; with a script, its tokens are what all rows want to write."""
    passes = []

    def write(_, __, kwargs, out):
        passes.append(kwargs["input_ids"])
        if script:
            out.logits[:, -1, script[min(len(passes), len(script)) - 1]] = 1e4

    handle = model.register_forward_hook(write, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


# ---- token ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_is_what_generate_writes_token_for_token(world, penalty):
    model, _ = world
    rows = some_rows(1, 8)
    free = theirs(model, rows, {511}, max_new_tokens=20, repetition_penalty=penalty)
    ends = {free[0][4], free[3][9]}
    expected = theirs(model, rows, ends, max_new_tokens=20, repetition_penalty=penalty)
    assert {len(row) < 20 for row in expected} == {True, False}
    assert ours(model, rows, Decoding(20, repetition_penalty=penalty), ends, PAD) == expected


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 3, pytest.param(5, marks=pytest.mark.nightly)])
def test_beams_are_those_of_generate_token_for_token(world, beams, penalty, early):
    model, _ = world
    asked = {"max_new_tokens": 12, "num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    lengths = set()
    for seed, count, repeated in ((1, 40, 1.0), (2, 3, 1.2), (3, 150, 1.0), (2, 400, 1.0)):
        rows, ends = some_rows(seed), set(random.Random(seed).sample(range(4, 512), count))
        expected = theirs(model, rows, ends, repetition_penalty=repeated, **asked)
        assert ours(model, rows, Decoding(repetition_penalty=repeated, **asked), ends, PAD) == expected
        lengths |= set(map(len, expected))
    assert min(lengths) < 12 and max(lengths) == 12  # EOS early, and never


def test_beams_without_an_eos_end_with_the_last_token(world):
    model, _ = world
    rows = some_rows(4)
    model.generation_config.eos_token_id, before = None, model.generation_config.eos_token_id
    try:
        expected = theirs(model, rows, set(), eos_token_id=None, max_new_tokens=8, num_beams=3)
    finally:
        model.generation_config.eos_token_id = before
    assert ours(model, rows, Decoding(8, num_beams=3), set(), PAD) == expected


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"repetition_penalty": 1.5}])
def test_a_row_is_the_same_alone_and_in_a_batch(world, asked):
    model, _ = world
    rows, ends = some_rows(5, 6), set(range(100, 120))
    decoding = Decoding(10, **asked)
    together = ours(model, rows, decoding, ends, PAD)
    assert together == [ours(model, [row], decoding, ends, PAD)[0] for row in rows]


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}])
def test_positions_that_were_learned_are_counted_from_the_first_token_of_each_row(asked):
    shape = {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_positions=64, **shape)).eval()
    rows, ends = some_rows(5, 6), set(range(100, 120))
    expected = theirs(model, rows, ends, max_new_tokens=10, **asked)
    assert ours(model, rows, Decoding(10, **asked), ends, PAD) == expected


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("asked", [{}, {"num_beams": 2}])
def test_a_long_row_is_not_read_on_beyond_the_positions_it_learned_while_a_short_one_is_written(kind, asked):
    two = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "word_embed_proj_dim": 32}
    shapes = {
        "gpt2": {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "opt": {"max_position_embeddings": 24, "ffn_dim": 64, **two},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=512, initializer_range=0.5, init_std=0.5, **shapes[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = [[5, 9] * 11, [6, 7, 8]]  # room for 2 and for 21
    alone = [ours(model, [row], Decoding(18, **asked), set(), PAD)[0] for row in rows]
    assert ours(model, rows, Decoding(18, **asked), set(), PAD) == alone and [*map(len, alone)] == [2, 18]


def test_a_model_in_bf16_writes_what_generate_writes(qwen_dir):
    model, _ = load(qwen_dir, dtype=torch.bfloat16)
    rows = some_rows(6)
    for asked in ({"repetition_penalty": 1.2}, {"num_beams": 3}):
        expected = theirs(model, rows, {2}, max_new_tokens=12, **asked)
        assert ours(model, rows, Decoding(12, **asked), {2}, PAD) == expected
    assert processed(torch.randn(2, 512).bfloat16(), torch.zeros(2, 1).long(), GREEDY).dtype == torch.float32


def test_a_row_that_ended_leaves_the_batch_and_the_batch_ends_with_its_last_row(qwen):
    model, _ = qwen
    rows = some_rows(7, 4)
    free = ours(model, rows, Decoding(20), set(), PAD)
    ends = {free[0][3], free[1][8], free[2][5], free[3][6]}
    with watched(model) as passes:
        found = ours(model, rows, Decoding(20), ends, PAD)
    longest = max(map(len, found))
    assert longest < 20 and len(passes) == longest
    read = [step[:, 0].tolist() for step in passes[1:]]
    assert read == [[row[at] for row in found if len(row) > at + 1] for at in range(longest - 1)]


def test_an_answer_ends_where_the_positions_of_the_model_do(tmp_path):
    model, tokenizer = load(make_causal_dir(tmp_path / "short", max_position_embeddings=24))
    rows = [[5] * 20, [6, 7] * 3, [8] * 23]
    for beams in (1, 3):
        found = ours(model, rows, Decoding(15, num_beams=beams), set(range(50, 60)), PAD)
        for row, new in zip(rows, found, strict=True):
            room = min(15, 24 - len(row))
            assert [new] == theirs(model, [row], set(range(50, 60)), max_new_tokens=room, num_beams=beams)
    assert {len(new) for new in ours(model, rows, Decoding(15), set(), PAD)} == {4, 15, 1}
    with pytest.raises(UserError) as error:
        generate(model, tokenizer, [[5] * 24, "天", [5] * 30, ""])
    long, longer, empty = error.value.problems
    assert "第 1 個" in long and "24 個 token" in long and "30 個" in longer and "最多 24 個" in longer
    assert "第 4 個" in empty and "空的" in empty
    with pytest.raises(UserError, match="30 個 token"):
        next(Generator(model, tokenizer, end_ids=set()).stream([5] * 30))


def test_an_empty_prompt_is_answered_where_the_tokenizer_begins_with_a_token(qwen):
    from tokenizers import processors

    model, tokenizer = qwen[0], AutoTokenizer.from_pretrained(qwen[1].name_or_path)
    begin = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend_tokenizer.post_processor = begin
    assert generate(model, tokenizer, ["", "天"], Decoding(6)) == generate(
        model, tokenizer, [[1], [1, *qwen[1]("天")["input_ids"]]], Decoding(6)
    )


# ---- sampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (5, 1.0), (0, 0.7), (50, 0.9), (1, 0.1), (999, 0.0)])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_filtered_is_what_the_processors_of_transformers_leave(temperature, top_k, top_p, penalty):
    torch.manual_seed(1)
    logits, previous = torch.randn(6, 512) * 4, torch.randint(0, 512, (6, 30))
    logits[0, :20] = logits[0].max()  # ties
    chain = logits_process.LogitsProcessorList()
    padding = torch.tensor([0, 3, 29, 0, 7, 1])
    if penalty != 1.0:
        chain.append(
            logits_process.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=padding.clone())
        )
    chain.append(logits_process.TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(logits_process.TopKLogitsWarper(top_k))
    chain.append(logits_process.TopPLogitsWarper(top_p))
    expected = chain(previous, logits)
    unseen = previous.masked_fill(torch.arange(30) < padding[:, None], 1 << 30)
    decoding = Decoding(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    assert torch.equal(filtered(processed(logits, unseen, decoding), decoding), expected)


def test_tokens_are_drawn_as_often_as_their_probability_says(qwen):
    model, _ = qwen
    decoding = Decoding(1, do_sample=True, temperature=0.8, top_k=6, top_p=0.95, seed=3)
    draws = 4000
    drawn = torch.tensor(ours(model, [[100]] * draws, decoding, set(), PAD))[:, 0]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[100]])).logits[:, -1]
    wanted = filtered(logits, decoding).softmax(-1)[0]
    shares = torch.bincount(drawn, minlength=512) / draws
    assert 3 <= (wanted > 0.03).sum() <= 6 and not shares[wanted == 0].any()
    assert ((shares - wanted).abs() <= 4 * (wanted * (1 - wanted) / draws).sqrt()).all()


def test_a_seed_and_a_row_number_fix_what_is_drawn_whatever_stands_beside(world):
    model, tokenizer = world
    warm = {"do_sample": True, "temperature": 1.5, "repetition_penalty": 1.1}
    texts = generate(model, tokenizer, PROMPTS, Decoding(12, seed=1, **warm))
    assert texts == generate(model, tokenizer, PROMPTS, Decoding(12, seed=1, **warm), batch_tokens=1)
    others = ["秋收冬藏" * 9, PROMPTS[1], "餘", PROMPTS[3]]
    beside = generate(model, tokenizer, others, Decoding(12, seed=1, **warm))
    assert (beside[1], beside[3]) == (texts[1], texts[3])
    longer = generate(model, tokenizer, PROMPTS, Decoding(30, seed=1, **warm))
    assert all(more.startswith(text.rstrip("\ufffd")) for more, text in zip(longer, texts, strict=True))
    assert texts != generate(model, tokenizer, PROMPTS, Decoding(12, seed=2, **warm))
    same = generate(model, tokenizer, [PROMPTS[0]] * 2, Decoding(12, seed=1, **warm))
    assert same[0] == texts[0] != same[1]
    unseeded = [generate(model, tokenizer, PROMPTS, Decoding(12, **warm)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_a_temperature_of_zero_is_greedy_and_beams_do_not_sample(qwen):
    rows = some_rows(8)
    cold = Decoding(8, do_sample=True, temperature=0, num_beams=1)
    assert ours(qwen[0], rows, cold, {2}, PAD) == ours(qwen[0], rows, Decoding(8), {2}, PAD)
    with pytest.raises(UserError, match="--num_beams 4"):
        Decoding(num_beams=4, do_sample=True)


# ---- n-grams, least length, min-p --------------------------------------------------------------------------


REPEATS = [[5, 6, 5, 6, 5], [9], [7, 8, 9] * 5, [100, 101, 102, 100, 101], [7] * 12]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "asked",
    [
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3, "repetition_penalty": 0.8},
        {"min_new_tokens": 7},
        {"min_new_tokens": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 0.7},
    ],
)
def test_n_grams_and_least_length_are_those_of_generate_token_for_token(world, beams, asked):
    model, _ = world
    if "repetition_penalty" not in asked and "no_repeat_ngram_size" in asked:
        asked = {**asked, "repetition_penalty": 0.5}  # so that there is something to ban
    rows = [*REPEATS, *some_rows(3, 3)]
    ends = set(random.Random(1).sample(range(4, 512), 60))
    asked = {"max_new_tokens": 12, "num_beams": beams, **asked}
    idle = {name: 0 for name in ("no_repeat_ngram_size", "min_new_tokens") if name in asked}
    expected = theirs(model, rows, ends, **asked)
    assert ours(model, rows, Decoding(**asked), ends, PAD) == expected
    assert ours(model, rows, Decoding(**{**asked, **idle}), ends, PAD) != expected
    assert min(map(len, expected)) >= asked.get("min_new_tokens", 0)


def test_an_n_gram_of_one_token_counts_the_prompt_and_no_padding(qwen):
    model, _ = qwen
    rows = [[5, 6, 7], [9]]
    together = ours(model, rows, Decoding(30, no_repeat_ngram_size=1), set(), PAD)
    for row, new in zip(rows, together, strict=True):
        assert [new] == theirs(model, [row], {511}, max_new_tokens=30, no_repeat_ngram_size=1)
        assert len({*row, *new}) == len(row) + 30
    free = processed(
        torch.randn(1, 512), torch.tensor([[NO_TOKEN, NO_TOKEN, 9]]), Decoding(no_repeat_ngram_size=1)
    )
    assert free.isneginf().nonzero().tolist() == [[0, 9]]


def test_a_row_without_a_token_left_is_refused_and_not_continued_by_chance(qwen):
    model, _ = qwen
    rows = [[i for i in range(512) if i != 50]]
    for asked in ({}, {"do_sample": True}):
        decoding = Decoding(3, no_repeat_ngram_size=1, min_new_tokens=3, **asked)
        with pytest.raises(UserError, match="--no_repeat_ngram_size 1"):
            ours(model, rows, decoding, {50}, PAD)


@pytest.mark.parametrize(
    "asked",
    [
        {"min_p": 0.1},
        {"min_p": 0.02, "top_k": 9, "top_p": 0.8, "temperature": 1.9},
        {"min_p": 0.3, "temperature": 0.4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.4},
        {"min_p": 1.0, "top_k": 0, "min_new_tokens": 9, "no_repeat_ngram_size": 3, "repetition_penalty": 0.6},
        {"min_p": 0.05, "top_p": 0.5, "min_new_tokens": 9, "no_repeat_ngram_size": 1},
    ],
)
def test_what_may_be_drawn_is_what_generate_leaves_in_its_own_order(qwen, asked):
    model, _ = qwen
    torch.manual_seed(1)
    logits, previous = torch.randn(8, 512) * 4, torch.randint(4, 40, (8, 30))
    ends = [*range(0, 512, 3)]
    config = GenerationConfig(do_sample=True, eos_token_id=ends, **{"top_k": 50, **asked})
    config._eos_token_tensor = torch.tensor(ends)
    chain = model._get_logits_processor(config, input_ids_seq_length=25, model_kwargs={})
    banned = ends if asked.get("min_new_tokens") else ()  # five of nine have been written
    decoding = Decoding(do_sample=True, **asked)
    left = filtered(processed(logits, previous, decoding, banned), decoding)
    assert torch.equal(left, chain(previous, logits))
    assert not torch.equal(left.isneginf(), filtered(logits, Decoding(do_sample=True)).isneginf())


def test_sampling_where_one_token_is_left_is_what_generate_draws(world):
    model, _ = world
    asked = {
        "do_sample": True,
        "min_p": 1.0,
        "min_new_tokens": 8,
        "no_repeat_ngram_size": 2,
        "max_new_tokens": 10,
    }
    rows, ends = [*REPEATS, *some_rows(4)], set(range(60, 120))
    assert ours(model, rows, Decoding(**asked), ends, PAD) == theirs(model, rows, ends, **asked)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "--min_new_tokens 9 大於 --max_new_tokens 8"),
        ({"min_p": 1.5}, "--min_p 1.5"),
        ({"no_repeat_ngram_size": -1}, "--no_repeat_ngram_size -1"),
        ({"stop": ["。", ""]}, "--stop"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_by_name(asked, says):
    with pytest.raises(UserError, match=says):
        Decoding(**asked)
    assert Decoding(stop="。\n").stop == ("。\n",) == Decoding(stop=["。\n"]).stop


# ---- stop strings and why a reply ended --------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_a_stop_string_ends_a_reply_where_it_ends_one_of_generate(world, beams):
    model, tokenizer = world
    rows, ends = some_rows(11, 6), set(random.Random(2).sample(range(4, 512), 20))
    asked = {"max_new_tokens": 14, "num_beams": beams}
    free = Generator(model, tokenizer, Decoding(**asked), (), ends).generate(rows)
    words = ["".join(char for char in text if "一" <= char < "\ufffd") for text in free]
    stops = [*filter(None, [words[0][1:2], words[1][2:4], words[2][:1], words[3][-2:]])]
    generator = Generator(model, tokenizer, Decoding(stop=stops, **asked), (), ends)
    found = theirs(model, rows, ends, stop_strings=stops, tokenizer=tokenizer, **asked)
    expected = [cut_at_stops(decode(tokenizer, row), stops) for row in found]
    replies = generator.generate(rows)
    assert replies == expected != free
    assert [cut_at_stops(text, stops) for text in free] == expected or beams > 1
    kinds = [
        (row[-1] in ends or decode(tokenizer, row) != text) for row, text in zip(found, expected, strict=True)
    ]
    assert [not reply.truncated for reply in replies] == kinds


@pytest.mark.parametrize("text", ["天AB地", "天ABC地", "天\nABC", "ABC", "天地玄AB\n\nC", "天AAB"])
def test_nothing_of_a_stop_string_is_shown_however_the_tokens_cut_it(qwen, text):
    model, tokenizer = qwen
    script = [*tokenizer(text)["input_ids"], *[tokenizer("黃")["input_ids"][0]] * 9]
    for stops in (["AB"], ["B地", "BC"], ["\n"], ["\n\n", "C"], ["地玄"], ["天"], ["AAB", "AB"]):
        decoding = Decoding(len(script), stop=stops)
        with watched(model, script):
            stream = Generator(model, tokenizer, decoding, ()).stream([40])
            pieces = list(stream)
        with watched(model, script):
            (reply,) = Generator(model, tokenizer, decoding, ()).generate([[40]])
        met = any(stop in text for stop in stops)
        assert "".join(pieces) == reply == cut_at_stops(decode(tokenizer, script), stops)
        assert stream.truncated == reply.truncated == (not met)


def test_a_stop_string_is_met_in_the_middle_of_a_token():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"op": 0, "st": 1, "opera": 2, "las": 3, "?": 4}, unk_token="?"))
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    for ids, expected in (
        ([3, 1, 2, 3], "las"),
        ([1, 0], ""),
        ([1, 3, 1], "stlasst"),
        ([3, 1, 1, 2], "lasst"),
    ):
        writer = Writer(tokenizer, ["stop"])
        pieces = [*map(writer.write, ids), writer.finish()]
        assert "".join(pieces) == expected and writer.over == ("stop" in tokenizer.decode(ids))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_reply_tells_whether_it_was_cut_short(tmp_path, beams):
    model, tokenizer = load(make_causal_dir(tmp_path / "m", max_position_embeddings=24))
    rows = some_rows(12, 12, longest=20)
    ends, asked = set(random.Random(3).sample(range(4, 512), 40)), {"num_beams": beams}
    ids = ours(model, rows, Decoding(9, **asked), ends, PAD)
    replies = Generator(model, tokenizer, Decoding(9, **asked), (), ends).generate(rows)
    assert [reply.truncated for reply in replies] == [row[-1] not in ends for row in ids]
    kinds = {(reply.truncated, len(row) < 9) for reply, row in zip(replies, ids, strict=True)}
    assert {(True, False), (True, True), (False, True)} <= kinds  # by the limit, by the room, by an end token
    for row, reply in zip(rows, replies, strict=True):
        stream = Generator(model, tokenizer, Decoding(9, **asked), (), ends).stream(row)
        assert ("".join(stream), stream.truncated) == (reply, reply.truncated)


def test_a_reply_goes_to_other_processes_as_it_is():
    import pickle

    reply = pickle.loads(pickle.dumps(Reply("天", True)))
    assert (reply, reply.truncated) == ("天", True) and not Reply("天").truncated


# ---- texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}])
def test_texts_are_the_decoded_tokens_in_the_order_of_the_prompts(world, asked):
    model, tokenizer = world
    prompts = [*PROMPTS, tokenizer("日月")["input_ids"]]
    rows = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    ends = eos_ids(model, tokenizer)
    ids = ours(model, rows, Decoding(30, **asked), ends, PAD)
    whole = [decode(tokenizer, row) for row in ids]
    assert generate(model, tokenizer, prompts, Decoding(30, **asked), stops=()) == whole
    stops = [text[len(text) // 2 :][:2] for text in whole[:2]]
    cut = [cut_at_stops(text, stops) for text in whole]
    assert cut[0] != whole[0]
    if not asked:  # a stop string finishes a beam, and another one may be the best then
        assert generate(model, tokenizer, prompts, Decoding(30), stops=stops) == cut


def test_a_batch_is_bounded_by_its_tokens(qwen):
    model, tokenizer = qwen
    rows = some_rows(9, 20, longest=60)
    for beams in (1, 2):
        decoding, done = Decoding(4, num_beams=beams), []
        with watched(model) as passes:
            texts = generate(model, tokenizer, rows, decoding, batch_tokens=200, on_done=done.append)
        first = [ids.shape for ids in passes if ids.shape[1] > 1]
        assert sum(done) == 20 and len(done) > 4 and max(done) > 1
        assert all(count * (length + 4) * beams <= 200 or count == 1 for count, length in first)
        assert texts == generate(model, tokenizer, rows, decoding)


def test_a_row_is_not_written_beyond_its_stop_string(qwen):
    model, tokenizer = qwen
    script = tokenizer("天地玄黃\nUser: 宇宙洪荒日月盈昃")["input_ids"]
    with watched(model, script) as passes:
        assert generate(model, tokenizer, ["秋", "收冬"], Decoding(40)) == ["天地玄黃"] * 2
    assert len(passes) < len(script)


def test_a_stop_string_that_is_a_special_token_cuts_and_other_special_tokens_vanish(llama):
    model, tokenizer = llama
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert end not in eos_ids(model, tokenizer)
    script = [*tokenizer("天")["input_ids"], start, *tokenizer("地\nUs")["input_ids"], end, 40, 41]
    with watched(model, script) as passes:
        assert generate(model, tokenizer, ["秋"], Decoding(40)) == ["天地\nUs"]
    assert len(passes) == script.index(end) + 1
    with watched(model, script):
        assert generate(model, tokenizer, ["秋"], Decoding(len(script)), stops=()) == [
            decode(tokenizer, script)
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [{}, {"do_sample": True, "seed": 5, "temperature": 1.5}, {"num_beams": 3, "length_penalty": 0.0}]
)
def test_a_stream_is_what_generate_returns(world, asked):
    model, tokenizer = world
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        (whole,) = generate(model, tokenizer, [prompt], Decoding(30, **asked), stops=())
        for stops in ((), (whole[6:8], "\nUser:"), (whole[3:9], whole[5:6])):
            generator = Generator(model, tokenizer, Decoding(30, **asked), stops)
            pieces = list(generator.stream(ids))
            (text,) = generator.generate([prompt])
            assert "".join(pieces) == text == cut_at_stops(text, stops)
            if (
                "num_beams" not in asked
            ):  # a stop string finishes a beam, and another one may be the best then
                assert text == cut_at_stops(whole, stops)
            assert all(pieces) and ("num_beams" not in asked or len(pieces) <= 1)


def test_a_piece_never_holds_half_a_character_nor_what_becomes_a_stop_string(qwen):
    _, tokenizer = qwen
    rng = random.Random(0)
    parts = [*HAN[:9], *"龘😀é\n U A", "👩\u200d🔬", "\nUs", "\nUser", "User:", "<|im", "<|im_end|"]
    cut = 0
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randint(0, 30)))
        text += rng.choice(["", "\nUser: 題目"])
        ids = tokenizer(text)["input_ids"]
        writer = Writer(tokenizer, STOPS)
        pieces = [writer.write(token) for token in ids] + [writer.finish()]
        expected = cut_at_stops(text, STOPS)
        assert "".join(pieces) == expected
        cut += expected != text
        assert writer.over == (expected != text)
        if not writer.over and text.endswith("A"):  # nothing is held longer than needed
            assert not pieces[-1]
    assert 50 < cut < 250


def test_words_keep_the_spaces_that_a_tokenizer_drops_before_a_first_word():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"▁sun": 0, "▁moon": 1, "?": 2}, unk_token="?"))
    words.decoder = decoders.Metaspace()
    writer = Writer(PreTrainedTokenizerFast(tokenizer_object=words), STOPS)
    assert [*map(writer.write, [0, 1, 0]), writer.finish()] == ["sun", " moon", " sun", ""]


def test_bytes_that_never_become_a_character_are_written_at_the_end(qwen):
    _, tokenizer = qwen
    ids = tokenizer("天龘")["input_ids"][:-1]
    writer = Writer(tokenizer, STOPS)
    assert "".join(map(writer.write, ids)) == "天"
    assert "天" + writer.finish() == tokenizer.decode(ids) != "天"


def test_the_first_stop_string_cuts_even_if_another_is_complete_before_it(qwen):
    _, tokenizer = qwen
    for text, expected in (("天ABCD地", "天"), ("天ABCE地", "天AB"), ("天ABC", "天AB")):
        writer = Writer(tokenizer, ("ABCD", "C"))
        pieces = [writer.write(token) for char in text for token in tokenizer(char)["input_ids"]]
        assert "".join([*pieces, writer.finish()]) == expected == cut_at_stops(text, ("ABCD", "C"))
        assert writer.over


def test_an_answer_ends_with_any_eos_and_with_the_end_of_turn_of_the_template(qwen_dir, llama_dir):
    model, tokenizer = load(llama_dir)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert eos_ids(model, tokenizer) == {tokenizer.eos_token_id, model.config.eos_token_id} - {None} == {0}
    model.generation_config.eos_token_id = [7, 8]
    model.config.eos_token_id = 9
    assert eos_ids(model, tokenizer) == {0, 7, 8, 9}
    tokenizer.chat_template = AutoTokenizer.from_pretrained(qwen_dir).chat_template
    assert eos_ids(model, tokenizer) == {0, 7, 8, 9, end}
