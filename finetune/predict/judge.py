"""A causal language model as judge of two answers. An exam with a key needs no judge: its accuracy is exact
and is printed beside; the judge is for answers in free text, and its scores are one model's opinion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from finetune.data.question import Question
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

JUDGE = "Qwen/Qwen2.5-3B-Instruct"
FULL_SCORE = 10
PROMPT = """[Question]: {question}
{reference}[Model A Answer]: {a}
[Model B Answer]: {b}

Act as an impartial judge. Evaluate both answers with respect to correctness, relevance and completeness.
Score each from 1 to 10. Reply with one line and nothing else, in this form:
Model A: X/10, Model B: Y/10"""
VERDICT = re.compile(r"Model A:\s*(\d{1,2})\s*/\s*10\s*[,，;；]?\s*Model B:\s*(\d{1,2})\s*/\s*10")


@lru_cache(maxsize=1)
def load_judge(name: str, device: str | None):
    """The judge as a `speaker.Speaker`. Raises UserError when the model is none, or cannot chat."""
    from finetune.runtime import hub

    name = hub.located(name)
    hub.prepare_for(name)
    import torch

    from finetune.models.forward import is_causal
    from finetune.models.loading import load
    from finetune.models.run_card import RunCard
    from finetune.models.source_checks import check_source
    from finetune.predict.causal import NO_TEMPLATE, CausalLMPredictor

    check_source(name, "model_name")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, tokenizer = load(name, "model_name", dtype="auto")
    if not is_causal(model):
        raise UserError(f"評審模型 {name} 是填空的遮罩模型，不能當評審；請換一個 Instruct 模型")
    model.run_card = RunCard.read(name)
    speaker = CausalLMPredictor.of(model.to(device).eval(), tokenizer, device)
    if speaker.style == NO_TEMPLATE:
        raise UserError(f"評審模型 {name} 沒有對話樣板（chat template），不能當評審；請換一個 Instruct 模型")
    return speaker


class EvalLLm:
    """Judges two answers to one question.

    Args:
        model_a_resp, model_b_resp: the answers; anything, shown as text.
        ground_truth: the right answer, shown to the judge; None when there is none.
        prompt: the question, used when `evaluation` gets none.
        model_name: the judge, a causal model that chats; one that was taught here too.
        device: of the judge; None takes the GPU if there is one.
    """

    def __init__(
        self,
        model_a_resp=None,
        model_b_resp=None,
        ground_truth=None,
        prompt: str | None = None,
        model_name: str = JUDGE,
        device: str | None = None,
    ):
        self.judge = load_judge(model_name, device)
        self.model_a_resp, self.model_b_resp = model_a_resp, model_b_resp
        self.ground_truth, self.prompt = ground_truth, prompt

    def evaluation(self, question: str | None = None, max_new_tokens: int = 512) -> list[int]:
        """[score of A, score of B], 1 to 10 each; [] and a word of it when the reply cannot be read."""
        from finetune.models.generation import Decoding

        reference = f"[Reference Answer]: {self.ground_truth}\n" if self.ground_truth else ""
        asked = PROMPT.format(
            question=question or self.prompt, reference=reference, a=self.model_a_resp, b=self.model_b_resp
        )
        (reply,) = self.judge.generate([self.judge.encode(asked)], Decoding(max_new_tokens=max_new_tokens))
        scores = parse_scores(reply)
        if not scores:
            log(f"⚠️ 評審的回答讀不出分數，不計：{reply.strip()[:120]!r}")
        return scores

    def judgement(self, scores: list, full_score: int = FULL_SCORE) -> dict:
        """Sums up scores: of one question ([a, b]) or of many ([[a, b], …]).

        Returns:
            n, mean score of each model, and how often each was better. n is 0 when nothing could be read.
        """
        pairs = [scores] if scores and not isinstance(scores[0], (list, tuple)) else scores
        pairs = [(a, b) for a, b in pairs if 1 <= a <= full_score and 1 <= b <= full_score]
        n = len(pairs)
        return {
            "n": n,
            "model_a_score": sum(a for a, _ in pairs) / n if n else None,
            "model_b_score": sum(b for _, b in pairs) / n if n else None,
            "a_better": sum(a > b for a, b in pairs),
            "b_better": sum(b > a for a, b in pairs),
            "ties": sum(a == b for a, b in pairs),
        }


def parse_scores(reply: str) -> list[int]:
    """[a, b] from a reply with the asked-for line exactly once, scores 1 to 10; [] from any other."""
    found = VERDICT.findall(reply)
    if len(found) != 1:
        return []
    scores = [int(score) for score in found[0]]
    return scores if all(1 <= score <= FULL_SCORE for score in scores) else []


@dataclass(frozen=True)
class JudgedRow:
    """What both models are asked: a question with options, or a conversation that the user spoke last in."""

    text: str  # as the judge is told it
    question: Question | None = None
    messages: tuple = ()
    reference: str = ""  # the right answer in words, "" where it is not known

    @classmethod
    def of(cls, item: object) -> JudgedRow:
        """A row of a test set: with options as `as_question` takes it; else Alpaca's (instruction, input,
        output), a chat's (messages), or a `prompt`.

        Raises:
            UserError: with the reason.
        """
        from finetune.data.instructions import parse_instruction
        from finetune.data.turns import is_told

        if is_told(item):
            try:
                messages = parse_instruction(item, need_answer=False).messages
            except ValueError as error:
                raise UserError(f"這一題看不懂：{error}（{str(item)[:60]}）") from error
            return cls(messages[-1]["content"], None, tuple(messages), _answer_to(messages, item))
        question = as_question(item)
        key = "" if question.answer is None else question.options[question.answer]
        return cls(question.stem, question, reference=key)


def _answer_to(messages: list, row: dict) -> str:
    """What the row itself answers to these messages, "" where it does not."""
    from finetune.data.instructions import parse_instruction

    try:
        *asked, reply = parse_instruction(row).messages
    except ValueError:
        return ""
    same = [one["content"] for one in asked] == [one["content"] for one in messages]
    return str(reply["content"]) if same else ""


def compare(
    rows: Sequence, answer: Sequence[Callable[[JudgedRow], str]], judge: str, max_length: int
) -> dict:
    """Two models answer every row; the key counts, the judge scores.

    Args:
        rows: as `Asked.of` takes them.
        answer: of the untuned and of the tuned model: what is asked -> the text of the option chosen, or the
            reply.
        max_length: of the judge's reply, in tokens.

    Returns:
        as `fine_tuning_llm.exe_chat`.
    """
    right, keyed, scores, unreadable, verdict = [0, 0], 0, [], 0, None
    everything = [JudgedRow.of(row) for row in rows]
    for asked in everything:
        replies = [model(asked) for model in answer]
        if asked.question is not None and asked.question.answer is not None:
            keyed += 1
            right = [count + (reply == asked.reference) for count, reply in zip(right, replies, strict=True)]
        verdict = EvalLLm(*replies, asked.reference or None, asked.text, judge)
        pair = verdict.evaluation(max_new_tokens=max_length)
        scores, unreadable = scores + [pair] * bool(pair), unreadable + (not pair)
    return {
        "n": len(everything),
        "untuned_accuracy": right[0] / keyed if keyed else None,
        "tuned_accuracy": right[1] / keyed if keyed else None,
        "judge": verdict.judgement(scores) if verdict else None,
        "unreadable": unreadable,
    }


def as_question(item: object) -> Question:
    """A row of a test set in any form people have: test_qa_data.json of this project or of its predecessor
    (options in the question's text, the answer as text), or one text `question:…\\nA:…\\nanswer:B`.

    Raises:
        UserError: with the reason.
    """
    if isinstance(item, str):
        match = re.fullmatch(r"\s*question:(.*?)\n\s*answer:(.*)", item, re.S)
        if not match:
            raise UserError(f"這一題看不懂：{item[:60]!r}；應為 question:…、A:…、answer:… 各一行")
        item = {"question": match[1], "answer": match[2].strip()}
    from finetune.data.question_rows import parse_question

    try:
        return parse_question(item)
    except ValueError as error:
        raise UserError(f"這一題看不懂：{error}（{str(item)[:60]}）") from error
