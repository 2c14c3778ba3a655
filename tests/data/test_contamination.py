"""Questions that were trained on are recognised in an exam, word for word or nearly."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from conftest import random_text

import inference
from finetune.data.contamination import (
    GRAM,
    NEAR,
    TrainedQuestions,
    decode_sketch,
    encode_sketch,
    grams,
    overlap,
)
from finetune.data.question import Question, normalised
from finetune.demo import builtin
from finetune.models.run_card import RunCard, question_fingerprints


def question(length=60, seed=0, **changes) -> Question:
    rng = random.Random(seed)
    return Question(
        changes.get("stem", random_text(rng, length, length)), ("玄黃", "宇宙", "洪荒", "日月"), 0, "physics"
    )


def slow_jaccard(first: Question, second: Question) -> float:
    def of(q):
        ends = "\0" * (GRAM - 1)
        texts = [ends + normalised(q.stem) + ends, *map(normalised, q.options)]
        return {text[i : i + GRAM] for text in texts for i in range(max(1, len(text) - GRAM + 1))}

    return len(of(first) & of(second)) / len(of(first) | of(second))


def test_the_overlap_of_short_questions_is_exact_and_of_long_ones_estimated_well():
    for length, tolerance in ((40, 1e-9), (600, 0.15)):
        first = question(length)
        for cut in (2, length // 4, length // 2):
            second = question(stem=first.stem[cut:])
            estimated = overlap(grams(first), grams(second))
            assert estimated == pytest.approx(slow_jaccard(first, second), abs=tolerance)


def test_the_same_question_in_other_clothes_is_the_same_and_a_reworded_one_is_near():
    trained = TrainedQuestions.of([question()])
    dressed = Question(f" {question().stem[:30]}，{question().stem[30:]}？", question().options[::-1], 3)
    assert trained.find(dressed) == ("same", 1.0)
    reworded = question(stem=question().stem[:55] + "何者為是")
    kind, share = trained.find(reworded)
    assert kind == "near" and NEAR <= share < 1
    assert trained.find(question(seed=9))[0] == ""


def test_questions_of_one_template_are_not_near_to_one_another():
    questions = [q for rows in builtin.exam().questions.values() for q in rows]
    trained = TrainedQuestions.of(questions)
    assert not [q for q in questions if trained.find(q, exact=False)[0]]


def test_a_run_card_keeps_what_is_needed_to_find_them_and_not_the_questions(tmp_path):
    rows = [question(seed=seed) for seed in range(5)]
    RunCard(fingerprints=sorted(q.fingerprint for q in rows), sketches=question_fingerprints(rows)).write(
        tmp_path
    )
    card = RunCard.read(tmp_path)
    assert card.trained_on.find(rows[3]) == ("same", 1.0)
    assert card.trained_on.find(question(stem=rows[3].stem[:55]))[0] == "near"
    written = (tmp_path / "run_card.json").read_text(encoding="utf-8")
    assert not any(rows[0].stem[i : i + GRAM] in written for i in range(50))
    assert decode_sketch(encode_sketch(grams(rows[0]))) == grams(rows[0])


def test_a_run_card_of_before_the_sketches_still_knows_its_questions():
    known = RunCard(fingerprints=[question().fingerprint]).trained_on
    assert known.find(question())[0] == "same" and known.find(question(seed=4))[0] == ""


@pytest.mark.slow
def test_a_score_is_given_with_and_without_what_was_trained_on(train, tmp_path, exam_dir, capsys):
    assert train("--max_steps", 1, "--exam_limit", 2, "--objective", "mlm") == 0
    words = ["--model_path", "my_bert_finetuned_model_hf_format", "--cpu", "--exam", str(exam_dir)]
    assert inference.main([*words, "--split", "train", "--report", "r", "--skip_option_only"]) == 0
    found = json.loads((tmp_path / "r/results.json").read_text())["train"]
    card = RunCard.read("my_bert_finetuned_model_hf_format")
    overlap_found = found["contamination"]
    assert overlap_found["same"] == len(overlap_found["rows"]) > 0
    assert overlap_found["without"]["n"] == found["model"]["n"] - overlap_found["same"]
    assert overlap_found["taught"] == len(card.fingerprints)
    assert "題是模型訓練過的" in capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "r/predictions.jsonl").read_text().splitlines()]
    named = {row["id"] for row in overlap_found["rows"]}
    clean = [a["gold"] == a["prediction"] for a in answers if a["id"] not in named]
    assert overlap_found["without"]["accuracy"] == pytest.approx(sum(clean) / len(clean))


def test_overlap_does_not_depend_on_the_order_of_the_two():
    rows = [question(seed=seed, length=50 + seed) for seed in range(4)]
    for first, second in itertools.combinations(rows, 2):
        assert overlap(grams(first), grams(second)) == overlap(grams(second), grams(first))
