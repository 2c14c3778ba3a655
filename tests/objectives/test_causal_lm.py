"""Texts and replies as examples, and the loss on them."""

import json
import random

import pytest
import torch
from conftest import make_causal_dir, random_text

from finetune.data.cleaning import Text
from finetune.data.instructions import Instruction
from finetune.data.question import Question
from finetune.models.forward import TokenLogits, document_mask, document_positions
from finetune.models.loading import load_config, load_model
from finetune.models.tokenizer import load_tokenizer
from finetune.objectives.batching import collate
from finetune.objectives.causal_lm import CausalLMObjective, InstructionObjective, pack_documents
from finetune.objectives.loss import summed_loss, token_losses
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat


def loaded(folder):
    config = load_config(folder, "--model_path", "causal")
    tokenizer = load_tokenizer(folder, "--model_path", "causal")
    return load_model(folder, config, tokenizer, "--model_path").eval(), tokenizer


@pytest.fixture(scope="module")
def qwen(qwen_dir):
    return loaded(qwen_dir)


@pytest.fixture(scope="module")
def llama(llama_dir):
    return loaded(llama_dir)


def texts(count, low=5, high=40, seed=1):
    rng = random.Random(seed)
    return [Text(random_text(rng, low, high), id=str(number)) for number in range(count)]


def replies(count=6, seed=2):
    rng = random.Random(seed)
    rows = [(random_text(rng, 4, 20), random_text(rng, 3, 25)) for _ in range(count)]
    return [Instruction((("user", a), ("assistant", b)), str(n)) for n, (a, b) in enumerate(rows)]


def loss_of(model, batch, packed=False):
    """Mean loss of a target, through the project's own forward pass."""
    blanks = TokenLogits(model, packed)
    logits = blanks(batch.input_ids, batch.attention_mask, batch.rows, batch.cols)
    return summed_loss(token_losses(logits, batch), batch) / batch.num_targets


def responses(tokenizer, rows, max_length=256, style="chat", **more):
    return InstructionObjective(CausalExamPrompts(Chat(tokenizer, style), max_length), rows, 0, **more)


# ---- replies -----------------------------------------------------------------------------------------------


def test_the_loss_is_on_the_reply_and_its_end_alone_as_transformers_computes_it(qwen):
    model, tokenizer = qwen
    rows = replies()
    objective = responses(tokenizer, rows)
    batch = collate([objective.example("reply", i, 0) for i in range(len(rows))], tokenizer.pad_token_id)
    total, count = 0.0, 0
    for row in rows:  # one at a time, with labels, nothing of ours
        asked, whole = row.messages[:1], row.messages
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        ids = tokenizer.apply_chat_template(whole)["input_ids"]
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # without the line break after it
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        said = len(ids) - len(prompt)
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, count = total + found.item() * said, count + said
    assert batch.num_targets == count
    assert loss_of(model, batch).item() == pytest.approx(total / count, rel=1e-5)


def test_with_train_on_prompt_every_token_but_the_first_is_a_target(qwen):
    _, tokenizer = qwen
    example = responses(tokenizer, replies(1), on_prompt=True).example("reply", 0, 0)
    assert example.targets == example.ids[1:] and example.positions == tuple(range(len(example.ids) - 1))


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_the_end_is_trained_on_and_padding_never_is(qwen, llama, style):
    _, tokenizer = qwen if style == "chat" else llama
    objective = responses(tokenizer, replies(), style=style)
    examples = [objective.example("reply", i, 0) for i in range(6)]
    batch = collate(examples, tokenizer.pad_token_id)
    assert all(example.targets[-1] == tokenizer.eos_token_id for example in examples)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in batch.targets.tolist()
    assert batch.attention_mask[batch.rows, batch.cols].all()


def test_every_turn_of_the_assistant_is_trained_on(qwen):
    _, tokenizer = qwen
    turns = (("user", "天地"), ("assistant", "玄黃"), ("user", "宇宙"), ("assistant", "洪荒"))
    example = responses(tokenizer, [Instruction(turns)]).example("reply", 0, 0)
    assert tokenizer.decode(list(example.targets)) == "玄黃<|im_end|>洪荒<|im_end|>"


def test_a_row_that_is_too_long_loses_the_tail_of_its_reply_but_never_all_of_it(qwen):
    _, tokenizer = qwen
    rows = [
        Instruction((("user", "天"), ("assistant", "玄黃" * 100)), "long"),
        Instruction((("user", "天地" * 100), ("assistant", "玄黃")), "hopeless"),
        Instruction((("user", "天"), ("assistant", "地")), "short"),
    ]
    objective = responses(tokenizer, rows, max_length=32)
    assert [row.id for row in objective.rows] == ["long", "short"]
    assert objective.too_long == ["hopeless"] and objective.truncated == 1
    examples = [objective.example("reply", i, 0) for i in range(2)]
    assert len(examples[0].ids) == 32 and examples[0].targets[-1] != tokenizer.eos_token_id
    assert all(example.targets for example in examples)


def test_a_question_is_trained_on_by_its_letter_in_a_new_order_each_epoch(qwen):
    _, tokenizer = qwen
    question = Question("天地？", ("玄黃", "宇宙", "洪荒", "日月"), 2, id="q")
    objective = responses(tokenizer, [question])
    seen = set()
    for epoch in range(12):
        example = objective.example("reply", 0, epoch)
        shown = tokenizer.decode(list(example.ids))
        letter = tokenizer.decode([example.targets[0]]).strip()
        assert f"{letter}. 洪荒" in shown and len(example.targets) == 2
        seen.add(letter)
    assert seen == set("ABCD")
    assert objective.example("reply", 0, 3) == objective.example("reply", 0, 3)


# ---- texts -------------------------------------------------------------------------------------------------


def test_every_token_of_every_text_is_packed_once_and_no_row_is_too_long(qwen):
    _, tokenizer = qwen
    rows = texts(30, 5, 200)
    objective = CausalLMObjective(tokenizer, rows, 64)
    examples = [objective.example(*entry, 0) for entry in objective.epoch(0)]
    assert max(len(example.ids) for example in examples) <= 64
    packed = sorted(token for example in examples for token in example.ids)
    eos = [tokenizer.eos_token_id]
    assert packed == sorted(t for row in rows for t in [*tokenizer(row.text)["input_ids"], *eos])
    pieces = sum(max(example.documents) for example in examples)
    assert sum(len(example.targets) for example in examples) == len(packed) - pieces


def test_packing_leaves_less_than_a_tenth_of_the_rows_empty():
    rng = random.Random(0)
    lengths = [rng.randint(5, 100) for _ in range(1000)]
    rows = pack_documents(lengths, 128)
    assert sorted(i for row in rows for i in row) == list(range(1000))
    assert all(sum(lengths[i] for i in row) <= 128 for row in rows)
    assert len(rows) * 128 * 0.9 < sum(lengths)


@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_the_logits_of_a_text_do_not_change_with_its_neighbours(kind, request):
    model, tokenizer = request.getfixturevalue(kind)
    objective = CausalLMObjective(tokenizer, texts(12), 128)
    example = max((objective.example(*e, 0) for e in objective.epoch(0)), key=lambda e: max(e.documents))
    assert max(example.documents) > 2
    batch = collate([example], tokenizer.pad_token_id)
    packed = TokenLogits(model, packed=True)(batch.input_ids, batch.attention_mask, batch.rows, batch.cols)
    at = 0
    for document in range(1, max(example.documents) + 1):
        ids = [t for t, d in zip(example.ids, example.documents, strict=True) if d == document]
        alone = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        torch.testing.assert_close(packed[at : at + len(ids) - 1], alone, atol=1e-5, rtol=1e-4)
        at += len(ids) - 1
    assert at == len(packed)


def test_documents_see_themselves_alone_and_count_their_positions_anew():
    documents = torch.tensor([[1, 1, 2, 2, 2, 0, 0]])
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    seen = document_mask(documents)[0, 0]
    for row in range(7):
        for col in range(7):
            assert seen[row, col] == (col <= row and documents[0, row] == documents[0, col])


def test_perplexity_does_not_depend_on_how_texts_are_packed(llama):
    model, tokenizer = llama
    found = []
    for size in (64, 200):
        objective = CausalLMObjective(tokenizer, texts(10), size)
        batch = collate([objective.example(*e, 0) for e in objective.epoch(0)], tokenizer.pad_token_id)
        found.append(loss_of(model, batch, packed=True).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# ---- tokenizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 3])
def test_padding_that_is_the_end_of_text_is_replaced_and_the_model_makes_room(tmp_path, room):
    folder = make_causal_dir(tmp_path / "m", vocab_size=512 + room)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    words = json.loads((folder / "tokenizer.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] != "<|pad|>"]
    words["model"]["vocab"] = {
        "<|other|>" if word == "<|pad|>" else word: i for word, i in words["model"]["vocab"].items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(words))
    model, tokenizer = loaded(folder)
    assert tokenizer.pad_token_id == 512 != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == max(513, 512 + room) == model.config.vocab_size
    assert torch.isfinite(model(input_ids=torch.tensor([[tokenizer.pad_token_id]])).logits).all()
