"""Replies without an answer, counted apart: figures, bounds, sentences."""

import pytest
from reply_maker import Maker

from finetune.data.question import Question
from finetune.evaluation.evaluator import ExamResult, compute_metrics, records
from finetune.evaluation.outcomes import count_outcomes, no_answer_reason
from finetune.evaluation.reply_reader import read_reply
from finetune.evaluation.scores import Scores
from finetune.reports import report, sections


def result_of(replies, method="generate") -> ExamResult:
    """The result of (right option, chosen option or outcome) pairs; `skipped` is one too."""
    scores = Scores([0.0] * 4 for _ in replies)
    scores.by_order = [[] for _ in replies]
    for index, (_, said) in enumerate(replies):
        scores.replies[index] = str(said)
        if said == "skipped":
            scores.skipped[index] = "太長"
        elif isinstance(said, str):
            scores.outcomes[index] = said
        else:
            scores[index] = [0.0 if option == said else -1.0 for option in range(4)]
    questions = [
        Question(f"第{index}題？", tuple("天地玄黃"), key, id=str(index))
        for index, (key, _) in enumerate(replies)
    ]
    return ExamResult(questions, scores, method, "1")


KINDS = ("right", "wrong", "unreadable", "truncated", "refused", "skipped")
THREE_HUNDRED = [
    *[(1, 1)] * 120,
    *[(1, 2)] * 100,
    *[(1, "unreadable")] * 50,
    *[(1, "truncated")] * 20,
    *[(1, "refused")] * 10,
]


def test_what_could_not_be_read_is_told_apart_from_what_is_wrong_with_both_bounds():
    figures = compute_metrics(result_of(THREE_HUNDRED))
    counts = figures["outcomes"]
    assert {key: counts[key] for key in KINDS} == {
        "right": 120, "wrong": 100, "unreadable": 50, "truncated": 20, "refused": 10, "skipped": 0,
    }  # fmt: skip
    assert figures["model"]["accuracy"] == 0.4 and counts["bounds"] == [0.4, 200 / 300]
    assert counts["readable"]["n"] == 220 and counts["readable"]["accuracy"] == pytest.approx(120 / 220)
    lines = sections.caveats(figures)
    assert lines[0].startswith(
        "300 題中答對 120、答錯 100，另有 80 題讀不出答案（看不出 50、寫到上限被截斷 20、拒答 10）："
        "全部算錯是 40.0 %，只看讀得出的 54.5 %，實際在 40.0 %–66.7 % 之間"
    )
    assert "20 題" in lines[1] and "--max_new_tokens" in lines[1]
    assert lines[0] in sections.section_notes(report.Report({}, {}, {}), figures)


@pytest.mark.parametrize(("right", "said"), [(10, "，但讀不出的太多，不能說模型比亂猜還差。"), (0, "還差。")])
def test_a_model_is_not_called_worse_than_chance_for_what_could_not_be_read(right, said):
    unread = 180 if right else 20
    replies = [*[(1, 1)] * right, *[(1, 2)] * (200 - right - unread), *[(1, "unreadable")] * unread]
    verdict = sections.verdict_sentence(report.Report({}, {}, {}), compute_metrics(result_of(replies)))
    assert f"{unread} 題讀不出答案，算答錯" in verdict and verdict.endswith(said)


def test_questions_that_were_never_asked_are_in_neither_bound():
    counts = compute_metrics(result_of([(0, 0), (0, "skipped"), (0, "refused"), (0, 1)]))["outcomes"]
    assert counts["bounds"] == [0.25, 0.5] and counts["readable"]["n"] == 2 and counts["skipped"] == 1
    assert sum(counts[key] for key in KINDS) == 4


def test_without_a_readable_reply_no_share_of_them_is_given():
    figures = compute_metrics(result_of([(0, "refused"), (1, "skipped")]))
    said = "拒答 1）：全部算錯是 0.0 %，實際在 0.0 %–50.0 % 之間"
    assert figures["outcomes"]["readable"] == {} and figures["skipped"] == 1
    assert any(said in line for line in sections.caveats(figures))
    assert count_outcomes([], Scores()) == {}


def test_other_methods_have_no_outcomes_and_no_sentence_on_them():
    figures = compute_metrics(result_of([(0, 0), (1, 0)], "letter"))
    assert figures["outcomes"] == {} and sections.caveats(figures) == []
    assert all("outcome" not in row for row in records(result_of([(0, 0)], "letter")))


def test_each_record_of_a_reply_says_its_outcome():
    rows = list(records(result_of([(0, 0), (0, "refused"), (0, "skipped")])))
    assert [row["outcome"] for row in rows] == ["answered", "refused", None]
    assert [row.get("skipped") for row in rows] == [None, None, "太長"] and rows[1]["prediction"] is None


@pytest.mark.parametrize(
    "outcome, words",
    [("truncated", "--max_new_tokens"), ("refused", "拒答"), ("unreadable", "看不出選了哪一個")],
)
def test_each_kind_of_no_answer_is_explained_with_its_way_out(outcome, words):
    said = no_answer_reason(outcome, "天" * 5000)
    assert words in said and "--scoring letter" in said and len(said) < 400


def test_the_bounds_of_500_generated_replies_hold_what_they_say_in_full():
    maker, replies, says = Maker(500), [], 0
    for _ in range(500):
        made = maker.reply()
        read = read_reply(made.text, made.options, made.truncated, made.thinking)
        replies.append((0, read.outcome if read.option is None else int(read.option != made.key)))
        says += made.says == made.key
    low, high = compute_metrics(result_of(replies))["outcomes"]["bounds"]
    assert low <= says / 500 <= high and 0 < high - low < 0.6
