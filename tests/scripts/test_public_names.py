"""Names people already import from `fine_tuning_llm`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import make_causal_dir

import fine_tuning_llm
from finetune.predict.judge import as_question, load_judge, parse_scores
from finetune.runtime.errors import UserError


def test_questions_are_handed_out_as_dicts(exam_dir):
    rows = fine_tuning_llm.generate_qa_benchmark(7, field="trade", dataset="test", source=str(exam_dir))
    assert [row["id"] for row in rows] == list(range(1, 8))
    for row in rows:
        assert (
            row["options"].keys() == set("ABCD")
            and row["answer"] in row["options"]
            and row["subject"] == "trade"
        )
    assert rows == fine_tuning_llm.generate_qa_benchmark(7, "trade", "test", str(exam_dir))


def test_the_letter_is_the_only_target_of_the_tensors(exam_dir, loaded):
    tokenizer = loaded[1]
    train, validation, held_back = fine_tuning_llm.get_dataset(
        tokenizer, max_length=128, source=str(exam_dir)
    )
    assert len(train) == 36 and len(validation) == 13 and len(held_back) == 3
    for ids, mask, labels in train:
        assert ids.shape == mask.shape == labels.shape == (128,)
        at = (labels != -100).nonzero().flatten().tolist()
        assert len(at) == 1 and ids[at[0]] == tokenizer.mask_token_id  # the target is masked
        assert tokenizer.convert_ids_to_tokens(labels[at[0]].item()) in "abcd"
    assert len(fine_tuning_llm.get_dataset(tokenizer, 5, 128, source=str(exam_dir))[0]) == 5


def test_both_models_fill_blanks(model_dir):
    words = fine_tuning_llm.chat_with_tuning_llm("天[MASK]", 4, str(model_dir))
    assert len(words) == 4 and words == fine_tuning_llm.general_chat("天[MASK]", 4, str(model_dir))


def test_a_classifier_fills_no_blanks_and_says_what_to_call(model_dir, tmp_path):
    from transformers import AutoModelForSequenceClassification

    shutil.copytree(model_dir, tmp_path / "m")
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=2)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="classify"):
        fine_tuning_llm.chat_with_tuning_llm("天[MASK]", 4, str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("Model A: 3/10, Model B: 8/10", [3, 8]),
        ("結論：\nModel A: 10/10, Model B: 1/10\n", [10, 1]),
        ("Model A: 11/10, Model B: 2/10", []),
        ("Model A: 0/10, Model B: 2/10", []),
        ("Model A: 3/10, Model B: 8/10. No: Model A: 4/10, Model B: 8/10", []),
        ("Score: 3 and 8", []),
        ("", []),
    ],
)
def test_a_judges_scores_are_read_strictly_or_not_at_all(reply, scores):
    assert parse_scores(reply) == scores


def test_rows_of_every_test_set_people_have_are_questions(exam_dir):
    ours = fine_tuning_llm.generate_qa_benchmark(1, "trade", source=str(exam_dir))[0]
    former = {"question": "天？\nA:地\nB:玄黃", "answer": "玄黃"}
    text = "question:天？\nA:地\nB:玄黃\nanswer:B\n"
    assert as_question(ours).stem == ours["question"]
    for item in (former, text):
        question = as_question(item)
        assert (question.stem, question.options, question.answer) == ("天？", ("地", "玄黃"), 1)
    with pytest.raises(UserError, match="無法解析"):
        as_question("天？")


@pytest.fixture(scope="module")
def judge_dir(tmp_path_factory) -> Path:
    """A two-layer Qwen2 with a chat template; it talks rubbish."""
    return make_causal_dir(tmp_path_factory.mktemp("judge") / "m", max_position_embeddings=2048)


def test_the_whole_comparison_runs_and_counts_what_it_could_not_read(judge_dir, model_dir, exam_dir, capsys):
    rows = fine_tuning_llm.generate_qa_benchmark(3, "trade", source=str(exam_dir))
    found = fine_tuning_llm.exe_chat(rows, 8, str(model_dir), str(model_dir), str(judge_dir))
    assert found["n"] == 3 and found["unreadable"] == 3 and found["judge"]["n"] == 0
    assert found["tuned_accuracy"] == found["untuned_accuracy"]
    assert "讀不出分數" in capsys.readouterr().err
    json.dumps(found)


def test_the_judge_sees_both_answers_and_the_key(judge_dir, monkeypatch):
    judge = fine_tuning_llm.EvalLLm("地", "玄", "黃", "天？", str(judge_dir), "cpu")
    asked, ask = [], judge.judge.encode
    monkeypatch.setattr(judge.judge, "encode", lambda said: asked.append(said) or ask(said))
    monkeypatch.setattr(judge.judge, "generate", lambda prompts, how: ["Model A: 2/10, Model B: 9/10"])
    assert judge.evaluation(max_new_tokens=4) == [2, 9]
    assert all(
        words in asked[0]
        for words in ("天？", "[Model A Answer]: 地", "[Model B Answer]: 玄", "[Reference Answer]: 黃")
    )
    assert judge.judgement([[2, 9], [5, 5]]) == {
        "n": 2, "model_a_score": 3.5, "model_b_score": 7.0, "a_better": 0, "b_better": 1, "ties": 1,
    }  # fmt: skip
    assert judge.judgement([2, 9])["b_better"] == 1 and judge.judgement([])["n"] == 0


@pytest.mark.slow
def test_causal_models_are_compared_too_by_letters_and_in_words(judge_dir, tmp_path, exam_dir, monkeypatch):
    from inference import generate_text, load_model

    other = make_causal_dir(tmp_path / "other", "llama", chat=False)
    seen = []

    def scored(self, question=None, max_new_tokens=512):
        seen.append((self.prompt, self.model_a_resp, self.model_b_resp, self.ground_truth))
        return [3, 7]

    monkeypatch.setattr(fine_tuning_llm.EvalLLm, "evaluation", scored)
    questions = fine_tuning_llm.generate_qa_benchmark(2, "trade", source=str(exam_dir))
    rows = [
        {"instruction": "天地", "input": "玄黃", "output": "宇宙"},
        {"messages": [{"role": "user", "content": "日月"}, {"role": "assistant", "content": "盈昃"}]},
        {"prompt": "洪荒"},
    ]
    found = fine_tuning_llm.exe_chat([*questions, *rows], 6, str(judge_dir), str(other), str(judge_dir))
    assert found["n"] == 5 and found["judge"]["b_better"] == 5 and found["unreadable"] == 0
    assert 0 <= found["tuned_accuracy"] <= 1
    assert [row[0] for row in seen[2:]] == ["天地\n\n玄黃", "日月", "洪荒"]
    assert [row[3] for row in seen[2:]] == ["宇宙", "盈昃", None]
    asked = [[{"role": "user", "content": "日月"}]]
    models = [load_model(folder, "cpu")[:2] for folder in (other, judge_dir)]
    said = [generate_text(*model, asked, "cpu", max_new_tokens=6) for model in models]
    assert [[text] for text in seen[3][1:3]] == said
    whole = fine_tuning_llm.chat_with_tuning_llm("日月", model_path=str(judge_dir))
    assert whole[0].startswith(said[1][0].rstrip("\ufffd")) and len(whole) == 1
    found = fine_tuning_llm.exe_chat(rows, 6, str(judge_dir), str(other), str(judge_dir))
    assert found["tuned_accuracy"] is None


def test_a_judge_that_cannot_be_had_or_cannot_chat_is_refused(model_dir, tmp_path):
    with pytest.raises(UserError):
        load_judge(str(tmp_path), "cpu")
    with pytest.raises(UserError):
        load_judge(str(model_dir), "cpu")
