"""Questions that lie on the disk are split, trained on and fingerprinted as those in memory are."""

from __future__ import annotations

import errno
import json
import pickle
import random
import subprocess
import sys
import tempfile
import tracemalloc
from itertools import groupby

import datasets
import pytest
from conftest import ROOT, random_text

from finetune.data import question_store
from finetune.data.contamination import TrainedQuestions
from finetune.data.exam import Exam, write_questions
from finetune.data.question import Question, Statement, as_dict, seeded_hash
from finetune.data.question_store import QuestionStore, QuestionView, concat, pick
from finetune.data.splits import sample_rows, split_exam
from finetune.models import run_card
from finetune.models.run_card import RunCard, question_fingerprints
from finetune.objectives import exam as exam_objective
from finetune.objectives.batching import EpochPlan, ExampleIndex, plan_epoch
from finetune.objectives.exam import ExamObjective
from finetune.prompts.exam import ExamPrompts
from finetune.runtime.errors import UserError
from finetune.training import datamodule

RATIO = (0.7, 0.2, 0.1)


def questions(count: int, seed: int = 0, passages: int = 0) -> list[Question]:
    """Some of them twice, in other clothes; of several subjects, one of them nameless."""
    rng = random.Random(seed)
    made: list[Question] = []
    for number in range(count):
        if made and rng.random() < 0.1:
            twin = rng.choice(made)
            stem, options = f" {twin.stem}！", twin.options[::-1]
        else:
            stem = random_text(rng, 1, 30)
            options = tuple(random_text(rng, 1, 9) for _ in range(rng.randint(2, 10)))
        passage = f"{rng.randrange(passages)}" if passages and rng.random() < 0.5 else ""
        subject, answer = rng.choice(["", "物理", "art", "b"]), rng.choice([None, 0, 1])
        made.append(Question(stem, options, answer, subject, f"q{number}", passage))
    return made


@pytest.fixture(params=["in memory", "on the disk"])
def place(request, monkeypatch):
    if request.param == "on the disk":
        monkeypatch.setattr(question_store, "IN_MEMORY", 7)


def test_what_is_put_into_the_question_store_is_read_back_as_it_was_in_any_order(place):
    given = questions(60, passages=5)
    kept = QuestionView(given[:30])
    assert list(kept) == given[:30]
    for question in given[30:]:  # reading and writing take turns
        kept.append(question)
        assert kept[-1] == question and kept[7] == given[7]
    assert kept == given and len(kept) == 60 and kept[5:50:3] == given[5:50:3]
    assert kept.pick([4, 0, 59]) == [given[4], given[0], given[59]]
    assert [f"{number:016x}" for number in kept.fingerprints] == [q.fingerprint for q in given]
    assert kept.subjects == {"物理", "art", "b"}
    assert kept.of_subjects({"art", ""}) == [q for q in given if q.subject in ("art", "")]
    assert kept != given[1:] and kept != [*given[:-1], given[0]] and kept != ["x"] * 60


def slow_split(exam: dict[str, list[Question]], pool: str, seed: int) -> tuple[list, list, list, int]:
    """The rule, row by row in lists."""
    test = [] if pool == "all" else exam["test"]
    seen, pooled, twice = {q.fingerprint for q in test}, [], 0
    for split, given in exam.items():
        for question in given if split != "test" or pool == "all" else []:
            twice += question.fingerprint in seen
            if question.fingerprint not in seen:
                seen.add(question.fingerprint)
                pooled.append(question)
    pooled.sort(key=lambda q: (q.subject, seeded_hash(seed, q.passage or q.fingerprint)))
    parts, count = ([], [], []), 0
    for passage, group in groupby(pooled, lambda q: q.passage):
        for together in [list(group)] if passage else ([q] for q in group):
            count += len(together)
            owed = [share * count - len(part) for share, part in zip(RATIO, parts, strict=True)]
            parts[owed.index(max(owed))].extend(together)
    return (*parts, twice)


@pytest.mark.parametrize("pool", ["fit", "all"])
@pytest.mark.parametrize("passages", [0, 20])
@pytest.mark.parametrize("stored", [False, True])
def test_rows_are_split_as_a_plain_loop_over_lists_splits_them(place, pool, passages, stored):
    exam = {
        name: questions(count, count, passages)
        for name, count in (("train", 90), ("test", 40), ("validation", 31))
    }
    exam["train"] += exam["test"][:5] + exam["validation"][:7]
    store = QuestionStore()
    given = {name: QuestionView(made, store) for name, made in exam.items()} if stored else exam
    splits = split_exam(Exam(given, ""), RATIO, pool, 3)
    fit, validation, held_back, twice = slow_split(exam, pool, 3)
    assert twice > 10 and splits.duplicates == twice
    assert (splits.fit, splits.validation, splits.held_out) == (fit, validation, held_back)
    assert splits.test == ([] if pool == "all" else exam["test"])


def test_rows_of_several_question_stores_are_joined_too():
    given = questions(20)
    store = QuestionStore()
    assert (
        concat([QuestionView(given[:5], store), QuestionView(given[5:12], store), QuestionView(store=store)])
        == given[:12]
    )
    assert concat([QuestionView(given[:5]), QuestionView(given[5:])]) == given
    assert concat([]) == []


def test_the_same_few_are_drawn_from_a_list_and_from_a_question_store():
    given = questions(50)
    assert sample_rows(QuestionView(given), 7, 1) == sample_rows(given, 7, 1) != sample_rows(given, 7, 2)
    assert (
        len(sample_rows(given, 7, 1)) == 7
        and sample_rows(QuestionView(given), 0, 1) == sample_rows(given, 50, 1) == given
    )
    assert pick(given, [2, 9]) == [given[2], given[9]]


def test_a_full_disk_is_said_with_the_place_and_the_way_out(monkeypatch):
    monkeypatch.setattr(question_store, "IN_MEMORY", 1)
    store, given = QuestionStore(), questions(3)
    store.append(given[0])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", full)
    with pytest.raises(UserError, match="No space left on device.*TMPDIR"):
        store.append(given[1])
    assert len(store) == 1 and store[0] == given[0]


def test_questions_on_the_disk_leave_no_file_behind_even_where_the_process_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr(question_store, "IN_MEMORY", 5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    given = questions(22)
    kept = QuestionView(given)
    assert not list(tmp_path.iterdir()) and kept == given


def test_few_questions_of_very_many_characters_go_to_the_disk_too(monkeypatch):
    monkeypatch.setattr(question_store, "CHARACTERS_IN_MEMORY", 100)
    given = questions(40)
    kept = QuestionView(given)
    assert len(kept.store._in_memory) < 20 and kept == given


def test_an_exam_of_the_size_of_tmmlu_is_kept_without_loading_datasets():
    code = (
        "import sys; from finetune.data.question import Question; "
        "from finetune.data.question_store import QuestionView; "
        "rows = QuestionView(Question(str(n), ('甲', '乙'), 0) for n in range(22_690)); "
        "assert rows[22_689].stem == '22689'; sys.exit('datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_a_question_on_the_disk_takes_less_than_sixty_bytes_of_memory(monkeypatch):
    monkeypatch.setattr(question_store, "IN_MEMORY", 4000)
    kept, given = QuestionView(questions(4000)), questions(8000)  # what the libraries hold is not counted
    records = list(map(pickle.dumps, given))
    tracemalloc.start()
    for record in records:
        kept.append(pickle.loads(record))
    kept.store._write()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept[4000:] == given and memory < 60 * len(given)


# ---- what is made of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["answer", "answer+mlm", "mlm"])
def test_examples_of_rows_in_a_question_store_are_those_of_a_list(place, loaded, name):
    given = [q for q in questions(40) if q.answer is not None] + [Question("長" * 300, ("甲" * 150, "乙"), 0)]
    made = [
        ExamObjective(name, ExamPrompts(loaded[1], 128), kept, 1) for kept in (given, QuestionView(given))
    ]
    assert made[0].too_long == made[1].too_long and len(made[0].too_long) == 1
    assert made[0].lengths == made[1].lengths
    entries = made[0].epoch(2)
    assert list(entries) == list(made[1].epoch(2))
    for entry in entries:
        assert made[0].example(*entry, 2) == made[1].example(*entry, 2)


def test_texts_tokenized_together_have_the_ids_of_those_tokenized_alone(loaded):
    given = [*questions(30), Question("[MASK] [SEP]", ("NA", "None"), 1), Statement("天是藍的", 2, 3)]
    together, alone = ExamPrompts(loaded[1], 64), ExamPrompts(loaded[1], 64, cache_size=1)
    together.prepare(given)
    for question in given[:-1]:
        for text in (question.stem, *question.options):
            plain = loaded[1](text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert together.ids(text) == alone.ids(text) == tuple(plain)


def test_token_ids_and_words_are_cached_of_so_many_rows_and_no_more(loaded, monkeypatch):
    monkeypatch.setattr(exam_objective, "WORDS_KEPT", 5)
    prompts = ExamPrompts(loaded[1], 64, cache_size=50)
    objective = ExamObjective("mlm", prompts, [q for q in questions(200) if q.answer is not None], 1)
    for entry in objective.epoch(0):
        objective.example(*entry, 0)
    assert len(objective._words) <= 5
    assert len(prompts._cache) <= 50 + 512 * 2  # what is tokenized together may be more


@pytest.mark.parametrize("count", [1, 5])
def test_questions_are_handed_on_as_one_piece_of_json_would_hold_them(tmp_path, count):
    given = [Question("甲\u2028乙\x85丙\n丁", ("一\u2029", "二"), 1, "s", f"{n}") for n in range(count)]
    write_questions(tmp_path / "q.json", QuestionView(given))
    text = (tmp_path / "q.json").read_text(encoding="utf-8")
    assert text == json.dumps([as_dict(question) for question in given], ensure_ascii=False, indent=1) + "\n"


def test_entries_and_plans_are_the_lists_that_they_stand_for():
    entries = ExampleIndex(("answer", range(20)), ("mlm", [3, 5]))
    plain = [("answer", at) for at in range(20)] + [("mlm", 3), ("mlm", 5)]
    assert list(entries) == plain and entries[-1] == plain[-1] and entries[3:22:4] == plain[3:22:4]
    with pytest.raises(IndexError):
        entries[22]
    batches = plan_epoch([5] * 22, 4, 0, 1)
    plan = EpochPlan(entries, batches)
    assert list(plan) == [[plain[at] for at in batch] for batch in batches]
    assert len(plan[2:]) == len(batches) - 2 and plan[2:][0] == plan[2]


def test_of_very_many_questions_a_card_knows_the_same_ones_but_not_near_ones(tmp_path, monkeypatch):
    given = questions(30, seed=4)
    near = Question(given[3].stem + "何", given[3].options, 0)
    whole = question_fingerprints(QuestionView(given))
    assert whole == question_fingerprints(given) and all(whole.values())
    monkeypatch.setattr(run_card, "SKETCHED", 10)
    few = question_fingerprints(QuestionView(given))
    assert few == dict.fromkeys(whole, "")
    RunCard(fingerprints=sorted(few)).write(tmp_path)
    trained = RunCard.read(tmp_path).trained_on
    assert all(trained.find(question) == ("same", 1.0) for question in given)
    assert trained.find(near)[0] == "" and TrainedQuestions.of(given).find(near)[0] == "near"


def test_a_run_of_very_many_says_so_and_keeps_the_sketches_of_the_stage_before_it(
    train, tmp_path, monkeypatch, capsys
):
    few = "--max_steps", 1, "--exam_limit", 2
    assert train(*few, "--pool", "fit", "--output_dir", "a/model", "--save_dir", "a/c") == 0
    first = RunCard.read("a/model")
    assert len(first.sketches) == len(first.fingerprints) > 10
    assert "只記每題的指紋" not in capsys.readouterr().err
    for module in (run_card, datamodule):
        monkeypatch.setattr(module, "SKETCHED", 3)
    again = "--model_name_or_path", "a/model", "--output_dir", "b/model", "--save_dir", "b/c"
    assert train(*few, *again, "--pool", "all") == 0
    second = RunCard.read("b/model")
    assert set(second.fingerprints) > set(first.fingerprints)
    assert second.sketches == first.sketches
    assert "題目超過 3 題：run_card.json 只記每題的指紋" in capsys.readouterr().err
