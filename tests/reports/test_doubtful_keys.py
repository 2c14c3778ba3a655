"""Doubtful keys in words: how many votes there are, who is not counted, what may be by accident."""

from __future__ import annotations

import random

from finetune.data.question import Question
from finetune.evaluation.key_audit import TOP, Voter, audit_keys
from finetune.reports import doubtful_keys

ORDER = (0, 1, 2, 3)


def audited(*models: tuple[str, float, int], count: int = 200) -> dict:
    """Metrics with an audit by models of (name, share right, votes a question)."""
    rng = random.Random(1)
    questions = [
        Question(f"題目{'很' * 50}長{i}", tuple("甲乙丙丁"), rng.randrange(4), "physics", str(i))
        for i in range(count)
    ]

    def row(question: Question, skill: float) -> list[float]:
        chosen = question.answer if rng.random() < skill else rng.randrange(4)
        return [2.0 * (option == chosen) for option in range(4)]

    voters = []
    for name, skill, votes in models:
        rows = [row(question, skill) for question in questions]
        voters.append(Voter(name, [[(ORDER, row)] * votes for row in rows]))
    return {"doubtful_keys": audit_keys(questions, voters).summary}


def test_the_list_says_who_voted_what_may_be_by_accident_and_that_a_person_is_to_check():
    metrics = audited(("甲", 0.7, 4), ("亂猜的", 0.0, 4))
    audit, text = metrics["doubtful_keys"], "".join(doubtful_keys.sentences(metrics))
    assert "亂猜的 的成績看不出比亂猜好，它的票不計" in text and "甲 每題 4 票：200 題中有" in text
    assert f"{audit['unanimous']} 題每一票都一樣" in text and "要由人查證，不能直接改答案" in text
    assert "各票獨立出錯時有大約" in text or "各票獨立出錯時有不到 0.1 題" in text
    assert "同一個模型的票都一起錯時有大約" in text
    assert audit["listed"] > TOP and f"這裡列出前 {TOP} 題，全部在 doubtful_keys.jsonl" in text
    shown = doubtful_keys.screen_lines(metrics)
    assert len(shown) == 2 + doubtful_keys.ON_SCREEN and max(map(len, shown)) < 130
    assert len(doubtful_keys.rows(metrics)) == TOP and "4/4" in doubtful_keys.rows(metrics)[0]


def test_a_single_vote_is_called_one():
    metrics = audited(("甲", 0.7, 1), ("亂猜的", 0.0, 1))
    text = "".join(doubtful_keys.sentences(metrics))
    assert "甲 每題 1 票，看不出意見是否一致" in text and "要由人查證" in text and "半數以上" not in text
    assert "只有一票" in doubtful_keys.screen_lines(metrics)[0]


def test_nothing_is_listed_where_the_votes_agree_with_the_keys_or_nobody_counts():
    agreed = audited(("甲", 1.0, 4), count=40)
    assert "沒有一題有半數以上的票選了題庫的答案以外" in "".join(doubtful_keys.sentences(agreed))
    nobody = audited(("甲", 0.0, 4), count=40)
    assert doubtful_keys.sentences(nobody)[-1] == "沒有可信的票，無從找出答案可能有誤的題目。"
    assert doubtful_keys.screen_lines({}) == []
