"""LLM-as-a-judge: a causal language model scores two answers to the same question.

An exam with a key needs no judge: its accuracy is exact and is reported beside. The judge is for answers in
free text, and its scores are one model's opinion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from finetune.data.question import Question
from finetune.runtime.console import log
from finetune.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune.predict.causal import CausalLMPredictor

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
def load_judge(name: str, device: str | None) -> CausalLMPredictor:
    """Load the judge. Raises UserError for what is no model, or a model that cannot chat."""
    from finetune.runtime import hub

    name = hub.resolve_cache_folder(name)
    hub.prepare_for(name)
    import torch

    from finetune.models.forward import is_causal
    from finetune.models.loading import LoadOptions, load
    from finetune.models.run_card import RunCard
    from finetune.models.source_checks import check_source
    from finetune.predict.causal import NO_TEMPLATE, CausalLMPredictor

    check_source(name, "model_name")
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, tokenizer = load(name, "model_name", LoadOptions(from_pretrained={"dtype": "auto"}))
    if not is_causal(model):
        raise UserError(f"評審模型 {name} 是填空的遮罩模型，不能當評審；請換一個 Instruct 模型")
    model = model.to(torch_device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    model.run_card = RunCard.read(name)
    predictor = CausalLMPredictor.of(model, tokenizer, torch_device)
    if predictor.style == NO_TEMPLATE:
        raise UserError(f"評審模型 {name} 沒有對話樣板（chat template），不能當評審；請換一個 Instruct 模型")
    return predictor


class EvalLLm:
    """Score two answers to one question with a judge.

    Args:
        model_a_resp, model_b_resp: the answers; anything, shown as text.
        ground_truth: the right answer, shown to the judge; None when there is none.
        prompt: the question, used when `evaluation` gets none.
        model_name: the judge, a causal model that chats; one that was fine-tuned here too.
        device: the judge's device; None takes the GPU if there is one.
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
        """Return [score of A, score of B], 1 to 10 each; [] and a warning for a reply that cannot be read."""
        from finetune.models.generation import Decoding

        reference = f"[Reference Answer]: {self.ground_truth}\n" if self.ground_truth else ""
        prompt = PROMPT.format(
            question=question or self.prompt, reference=reference, a=self.model_a_resp, b=self.model_b_resp
        )
        (reply,) = self.judge.generate([self.judge.encode(prompt)], Decoding(max_new_tokens=max_new_tokens))
        scores = parse_scores(reply)
        if not scores:
            log(f"⚠️ 評審的回答讀不出分數，不計：{reply.strip()[:120]!r}")
        return scores

    def judgement(self, scores: list, full_score: int = FULL_SCORE) -> dict[str, Any]:
        """Summarize scores of one question ([a, b]) or of many ([[a, b], …]).

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
    """Return [a, b] from a reply with exactly one line as required, scores 1 to 10; [] from any other."""
    matches = VERDICT.findall(reply)
    if len(matches) != 1:
        return []
    scores = [int(score) for score in matches[0]]
    return scores if all(1 <= score <= FULL_SCORE for score in scores) else []


@dataclass(frozen=True)
class JudgedRow:
    """A row of a test set: a question with options, or a conversation whose last message is the user's."""

    text: str  # as it is shown to the judge
    question: Question | None = None
    messages: tuple[dict[str, Any], ...] = ()
    reference: str = ""  # the right answer in words, "" where it is not known

    @classmethod
    def of(cls, item: object) -> JudgedRow:
        """Read a row: a question with options, Alpaca's, a chat's (messages), or a `prompt`.

        Args:
            item: a question as `as_question` takes it; Alpaca's has instruction, input and output.

        Raises:
            UserError: with the reason.
        """
        from finetune.data.instructions import parse_instruction
        from finetune.data.turns import is_chat

        if is_chat(item):
            try:
                messages = parse_instruction(item, need_answer=False).messages
            except ValueError as error:
                raise UserError(f"這一題無法解析：{error}（{str(item)[:60]}）") from error
            return cls(str(messages[-1]["content"]), None, tuple(messages), _answer_to(messages, item))
        question = as_question(item)
        key = "" if question.answer is None else question.options[question.answer]
        return cls(question.stem, question, reference=key)


def _answer_to(messages: list[dict[str, Any]], row: object) -> str:
    """Return the row's own answer to these messages, "" where it has none."""
    from finetune.data.instructions import parse_instruction

    try:
        *before, reply = parse_instruction(row).messages
    except ValueError:
        return ""
    same = [message["content"] for message in before] == [message["content"] for message in messages]
    return str(reply["content"]) if same else ""


def compare(
    rows: Sequence, answer: Sequence[Callable[[JudgedRow], str]], judge: str, max_length: int
) -> dict[str, Any]:
    """Have two models answer every row; the key gives the accuracy, the judge gives scores.

    Args:
        rows: as `JudgedRow.of` takes them.
        answer: for the untuned and the tuned model: row -> the text of the option chosen, or the reply.
        max_length: longest reply of the judge, in tokens.

    Returns:
        as `fine_tuning_llm.exe_chat`.
    """
    right, keyed, unreadable = [0, 0], 0, 0
    scores: list[list[int]] = []
    verdict: EvalLLm | None = None
    judged_rows = [JudgedRow.of(row) for row in rows]
    for row in judged_rows:
        reply_a, reply_b = (model(row) for model in answer)
        if row.question is not None and row.question.answer is not None:
            keyed += 1
            right = [right[0] + (reply_a == row.reference), right[1] + (reply_b == row.reference)]
        verdict = EvalLLm(reply_a, reply_b, row.reference or None, row.text, judge)
        pair = verdict.evaluation(max_new_tokens=max_length)
        scores, unreadable = scores + [pair] * bool(pair), unreadable + (not pair)
    return {
        "n": len(judged_rows),
        "untuned_accuracy": right[0] / keyed if keyed else None,
        "tuned_accuracy": right[1] / keyed if keyed else None,
        "judge": verdict.judgement(scores) if verdict else None,
        "unreadable": unreadable,
    }


def as_question(item: object) -> Question:
    r"""Read a question of a test set, in any of the known forms.

    Args:
        item: a row of test_qa_data.json of this project or of its predecessor (options in the question's
            text, the answer as text), or one text `question:…\nA:…\nanswer:B`.

    Raises:
        UserError: with the reason.
    """
    if isinstance(item, str):
        match = re.fullmatch(r"\s*question:(.*?)\n\s*answer:(.*)", item, re.S)
        if not match:
            raise UserError(f"這一題無法解析：{item[:60]!r}；應為 question:…、A:…、answer:… 各一行")
        item = {"question": match[1], "answer": match[2].strip()}
    from finetune.data.question_rows import parse_question

    try:
        return parse_question(item)
    except ValueError as error:
        raise UserError(f"這一題無法解析：{error}（{str(item)[:60]}）") from error
