"""The encoder's own pass: the numbers of transformers with less work, in fp32, under autocast and light; its
dropout; BERT without transformers."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, make_model_dir, random_text
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
)

import fine_tuning_llm
import inference
from finetune.data.question import Question
from finetune.evaluation import scoring
from finetune.models import bert, cpu
from finetune.models.forward import SequenceLogits, TokenLogits, bf16_forward
from finetune.models.loading import load_config
from finetune.models.tokenizer import load_tokenizer
from finetune.objectives.batching import split_by_tokens
from finetune.prompts.exam import ExamPrompts

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 66, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES = ("bert", "roberta", "xlm-roberta", "ernie")


def model_of(family: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **changes})
    return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").eval()


def ragged(lengths, width, pad_id=0):
    """(input_ids, attention_mask) of rows of these lengths."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 300, (len(lengths), width), generator=draw)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, pad_id), mask


def compare_gradients(ours, theirs):
    """Some are zero but for rounding: a key's bias moves all scores alike."""
    limit = 1e-5 * max(float(weight.grad.abs().max()) for weight in theirs.parameters())
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=limit, msg=name)


# several in a row, none in one, one asked twice, out of order
ROWS, COLS = torch.tensor([3, 0, 0, 1, 3, 3, 0]), torch.tensor([4, 3, 5, 0, 0, 4, 1])


@pytest.mark.parametrize("lengths", [(16, 16, 16, 16), (16, 3, 9, 5), (6, 1, 1, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers_own_pass(family, lengths):
    theirs = model_of(family)
    ours = copy.deepcopy(theirs)
    forward = TokenLogits(ours).eval()
    assert forward.has_fast_path
    ids, mask = ragged(lengths, 16, theirs.config.pad_token_id)
    expected = theirs(input_ids=ids, attention_mask=mask).logits[ROWS, COLS]
    found = forward(ids, mask, ROWS, COLS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    compare_gradients(ours, theirs)


@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMultipleChoice])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_read_whole_rows_say_what_they_say_after_transformers_own_pass(family, head):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, "type_vocab_size": 2, "num_labels": 5})
    theirs = head.from_config(config).eval()
    ours = copy.deepcopy(theirs)
    ids, mask = ragged((16, 3, 9, 5), 16, config.pad_token_id)
    for segments in (None, (torch.arange(16) > 2).long().expand(4, 16)):
        given = {"input_ids": ids, "attention_mask": mask}
        given |= {} if segments is None else {"token_type_ids": segments}
        if head is AutoModelForMultipleChoice:
            given = {name: value[:, None] for name, value in given.items()}
        expected = theirs(**given).logits[[2, 0, 0]]
        found = SequenceLogits(ours).eval()(
            ids, mask, torch.tensor([2, 0, 0]), torch.zeros(3).long(), segments
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        expected.square().sum().backward()
        found.square().sum().backward()
    compare_gradients(ours, theirs)


def test_what_stands_in_padding_changes_nothing():
    forward = TokenLogits(model_of("bert")).eval()
    ids, mask = ragged((16, 3, 9, 5), 16)
    other = torch.where(mask == 0, 77, ids)
    assert torch.equal(forward(ids, mask, ROWS, COLS), forward(other, mask, ROWS, COLS))


def test_in_bf16_the_pass_is_as_near_to_fp32_as_transformers_own():
    model = model_of("bert")
    ids, mask = ragged((16, 3, 9, 5), 16)
    with torch.no_grad():
        exact = model(input_ids=ids, attention_mask=mask).logits[ROWS, COLS]
        with torch.autocast("cpu", torch.bfloat16):
            theirs = model(input_ids=ids, attention_mask=mask).logits[ROWS, COLS].float()
            ours = TokenLogits(model).eval()(ids, mask, ROWS, COLS)
        light = bf16_forward(model)(ids, mask, ROWS, COLS)
    limit = 1.5 * (theirs - exact).abs().mean()
    assert 0 < (ours - exact).abs().mean() < limit
    assert 0 < (light - exact).abs().mean() < limit


def test_a_light_pass_learns_of_it_when_the_model_was_taught_in_between():
    model = model_of("bert")
    light = bf16_forward(model)
    ids, mask = ragged((9, 9, 9, 9), 9)
    with torch.no_grad():
        before = light(ids, mask, ROWS, COLS)
        assert torch.equal(light(ids, mask, ROWS, COLS), before)
        model.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
        after = light(ids, mask, ROWS, COLS)
        assert not torch.equal(after, before)
        assert torch.equal(after, bf16_forward(model)(ids, mask, ROWS, COLS))


@pytest.mark.parametrize(
    "changes", [{"family": "albert", "embedding_size": 16}, {"chunk_size_feed_forward": 2}]
)
def test_families_with_other_layers_are_left_to_transformers(changes):
    assert not TokenLogits(model_of(**{"family": "bert", **changes})).has_fast_path


def test_gradient_checkpointing_drops_the_same_again_when_it_computes_again():
    found = {}
    ids, mask = ragged((16, 3, 9, 5), 16)
    for checkpointing in (True, False):
        model = cpu.use_fast_dropout(
            model_of("bert", attention_probs_dropout_prob=0.4, hidden_dropout_prob=0.4)
        )
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(6)
        TokenLogits(model).train()(ids, mask, ROWS, COLS).square().sum().backward()
        found[checkpointing] = [weight.grad for weight in model.parameters()]
    for again, once in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(again, once)


# ---- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_that_is_dropped_is_p_and_the_rest_is_scaled_as_torch_scales_it(dtype, p):
    torch.manual_seed(3)
    found = cpu.dropout_mask(torch.empty(0, dtype=dtype), p, (400, 1001))
    assert found.dtype == dtype
    kept = nn.functional.dropout(torch.ones(64, dtype=dtype), p).max()
    assert set(found.unique().tolist()) == {0.0, kept.item()}
    spread = math.sqrt(p * (1 - p) / found.numel())
    assert abs((found == 0).double().mean() - p) < 5 * spread + 2**-16
    dropped = (found == 0).double() - p
    for step in (1, 2, 4, 1001):  # neighbours, and rows, have nothing to do with each other
        together = (dropped.flatten()[step:] * dropped.flatten()[:-step]).mean() / (p * (1 - p))
        assert abs(together) < 5 / math.sqrt(found.numel())


def test_the_same_seed_drops_the_same_and_another_one_does_not():
    layer, inputs = cpu.Dropout(0.3), torch.ones(50, 7)

    def drawn(seed):
        torch.manual_seed(seed)
        return layer(inputs), torch.rand(3)

    assert all(map(torch.equal, drawn(1), drawn(1)))
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    assert layer.eval()(inputs) is inputs


def test_gradients_pass_where_nothing_was_dropped():
    inputs = torch.ones(1000, requires_grad=True)
    found = cpu.Dropout(0.4)(inputs)
    found.sum().backward()
    assert torch.equal(inputs.grad, found.detach())


def test_all_of_a_models_dropout_becomes_cheap_and_its_weights_keep_their_names():
    model = model_of("bert")
    names = list(model.state_dict())
    cpu.use_fast_dropout(model)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Dropout)} == {cpu.Dropout}
    assert list(model.state_dict()) == names


# ---- batches by tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_cut_by_tokens_keeps_its_rows_and_its_limit_and_is_alike_on_every_rank(world):
    rng = random.Random(world)
    lengths = [rng.randint(4, 60) for _ in range(40)] + [500]
    parts = [split_by_tokens(range(41), lengths.__getitem__, rank, world, 200) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    flat = [row for part in parts for micro in part for row in micro if row is not None]
    assert sorted(flat) == list(range(41))
    for micro in (micro for part in parts for micro in part):
        sizes = [lengths[row] for row in micro if row is not None]
        assert len(micro) == 1 or len(micro) * (-(-max(sizes) // 8) * 8) <= 200


# ---- close calls -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("encoder") / "model", initializer_range=0.3)


def questions(count):
    rng = random.Random(5)
    return [
        Question(random_text(rng, 4, 20), tuple(random_text(rng, 1, 6) for _ in range(4)), 0, "s", f"q{i}")
        for i in range(count)
    ]


@pytest.mark.parametrize("method", ["letter", "letter+prior", "pll", "joint"])
def test_close_calls_of_a_light_pass_are_decided_by_the_exact_one(folder, method, monkeypatch):
    monkeypatch.setattr(scoring, "CLOSE", math.inf)
    monkeypatch.setattr(scoring, "GUESSING", 1.0)
    tokenizer = load_tokenizer(str(folder), "--model_path")
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    light, prompts, rows = bf16_forward(model), ExamPrompts(tokenizer, 128), questions(30)
    exact = scoring.score_options(light.fp32_forward, tokenizer, rows, method, prompts=prompts)
    config = scoring.ScoringConfig(method, prior=exact.prior or None)
    scorer = scoring.Scorer.of(light, prompts)
    found = scorer.score(rows, config)
    monkeypatch.setattr(scoring, "CLOSE", 0.0)
    rough = scorer.score(rows, config)
    at = [i for i in range(30) if i not in exact.rotated]
    for i in at:
        assert found[i] == pytest.approx(exact[i], abs=1e-5)
    assert max(abs(a - b) for i in at for a, b in zip(rough[i], exact[i], strict=True)) > 1e-4


def scores_apart(margins, orders=1):
    """Of questions of three options, asked in so many orders."""
    scores = scoring.Scores([0.0, -margin, -9.0] for margin in margins)
    scores.by_order = [[((0, 1, 2), row)] * orders for row in scores]
    return scores


def test_every_close_call_is_asked_again_and_the_closest_first():
    assert scoring._close(scores_apart([1.0, 0.019, 0.0, 0.021, 1.0, 1.0])) == [2, 1]


def test_a_mean_over_four_orders_is_close_at_half_the_distance():
    assert scoring._close(scores_apart([1.0, 0.011, 0.009, 1.0], orders=4)) == [2]


def test_of_a_model_that_guesses_only_the_closest_few_questions_are_asked_again():
    scores = scores_apart([*(1e-9 * i for i in range(1, 301)), 1.0])
    scores.skipped[0] = "?"
    assert scoring._close(scores) == [1, 2, 3, 4, 5, 6]


# ---- precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "gain", "expected"), [(768, 4.0, "bf16"), (768, 1.2, "fp32"), (64, 9.0, "fp32")]
)
def test_auto_takes_bf16_where_it_was_measured_to_be_faster_and_says_so(hidden, gain, expected, monkeypatch):
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: gain)
    precision, said = cpu.choose_precision(hidden)
    assert precision == expected
    assert f"精度：{expected}" in said


def test_the_gain_of_bf16_is_measured_on_this_machine():
    assert 0.01 < cpu.bf16_speedup() < 100


@pytest.mark.slow
def test_teaching_and_exam_in_bf16_by_auto_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "SMALL", 1)
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 3.0)
    losses = {}
    for precision in ("auto", "fp32"):
        home = tmp_path / precision
        flags = ["--demo", "--max_steps", "30", "--precision", precision, "--exam_limit", "20", "--cpu"]
        flags += ["--save_dir", str(home / "c"), "--output_dir", str(home / "m"), "--num_epochs", "1"]
        assert fine_tuning_llm.main(flags) == 0
        assert ("精度：bf16（這顆 CPU 算 bf16 快 3.0 倍" in capsys.readouterr().err) is (precision == "auto")
        lines = map(json.loads, (home / "train_log.jsonl").read_text("utf-8").splitlines())
        losses[precision] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["auto"]) == 30
    for light, exact in zip(losses["auto"], losses["fp32"], strict=True):
        assert light == pytest.approx(exact, rel=0.02)
    assert losses["auto"] != losses["fp32"]


def test_precision_fp32_asked_for_on_the_command_line_stays(folder, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "SMALL", 1)
    monkeypatch.setattr(cpu, "bf16_speedup", lambda: 3.0)
    found = {}
    for precision in ("auto", "fp32"):
        ask = [
            "--model_path",
            str(folder),
            "--question",
            "天地？",
            "--options",
            "A:玄 B:黃",
            "--json",
            "--cpu",
        ]
        assert inference.main([*ask, "--precision", precision]) == 0
        found[precision] = json.loads(capsys.readouterr().out)
    assert found["auto"] != found["fp32"]


# ---- BERT from its weights alone ---------------------------------------------------------------------------


def plain(folder):
    return bert.load(str(folder), load_config(str(folder), "--model_path"))


def test_plain_bert_gives_the_logits_of_transformers_bert(folder):
    ids, mask = ragged((16, 3, 9, 5), 16)
    ids = ids % 40
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[ROWS, COLS]
        found = TokenLogits(plain(folder)).eval()(ids, mask, ROWS, COLS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        found = bf16_forward(plain(folder))(ids, mask, ROWS, COLS)
        torch.testing.assert_close(found, bf16_forward(model)(ids, mask, ROWS, COLS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape", "no file", "activation", "untied"])
def test_whatever_is_not_plain_bert_is_left_to_transformers(folder, tmp_path, spoil):
    copied = tmp_path / "m"
    subprocess.run(["cp", "-r", str(folder), str(copied)], check=True)
    weights, name = load_file(copied / "model.safetensors"), "bert.encoder.layer.1.output.dense.weight"
    settings = json.loads((copied / "config.json").read_text())
    assert plain(copied) is not None
    if spoil == "missing":
        del weights[name]
    elif spoil == "extra":
        weights["bert.encoder.layer.2.output.dense.weight"] = weights[name].clone()
    elif spoil == "shape":
        weights[name] = weights[name][:, :-1].contiguous()
    elif spoil == "activation":
        settings["hidden_act"] = "relu"
    elif spoil == "untied":
        settings["tie_word_embeddings"] = False
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    (copied / "config.json").write_text(json.dumps(settings))
    if spoil == "no file":
        (copied / "model.safetensors").unlink()
    assert plain(copied) is None


def test_old_names_of_norms_and_weights_that_fill_no_blank_are_read(folder, tmp_path):
    copied = tmp_path / "m"
    subprocess.run(["cp", "-r", str(folder), str(copied)], check=True)
    weights = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(copied / "model.safetensors").items()
    }
    weights |= {"bert.pooler.dense.weight": torch.ones(2), "cls.seq_relationship.bias": torch.ones(2)}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert plain(copied) is not None


@pytest.mark.slow
def test_one_prompt_is_answered_without_the_imports_that_take_longest(folder):
    script = (
        "import sys; sys.argv=['inference.py']; import inference\n"
        f"code = inference.main(['--model_path', {str(folder)!r}, '--prompt', '天[MASK]玄黃', '--cpu'])\n"
        "late = {'transformers.modeling_utils', 'torch._dynamo', 'torch.distributed.tensor', 'scipy'}\n"
        "print(sorted(late & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert "預測結果" in done.stdout
