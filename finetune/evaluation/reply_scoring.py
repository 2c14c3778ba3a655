"""Scores from replies: questions are asked, what is answered is kept for a run that is killed, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from finetune.data.question import Question
from finetune.evaluation.reply_reader import ReadReply
from finetune.evaluation.scores import Progress, Scores
from finetune.models.streaming import Reply
from finetune.prompts.option_order import PromptError
from finetune.runtime.distributed import Distributed
from finetune.runtime.journal import AnswerJournal

# (numbers of what is asked) -> their answers by number, as JSON keeps them, as they come
Ask = Callable[[list[int]], Iterable[dict[int, Any]]]
Write = Callable[[Question], tuple[Any, int]]  # -> the prompt, and how much of it was cut
# (prompts, progress) -> the reply to each, or why there is none
Replies = Callable[[Sequence[Any], Progress | None], Sequence[Reply | PromptError]]
Read = Callable[[Reply, Question, Any], ReadReply]  # (reply, question, its prompt)


def answer_all(
    asked: Sequence[object],
    ask: Ask,
    answers: AnswerJournal | None,
    known: Callable[[list[int]], object],
    sampled: bool = False,
) -> list[Any]:
    """Return the answer to each thing that is asked; what an interrupted run has answered is not asked again.

    Args:
        asked: all that decides an answer, as JSON.
        ask: asks for the answers that are missing.
        answers: keeps the answers; None keeps nothing.
        known: called with the numbers of what need not be asked.
        sampled: the same question may be answered otherwise next time, and so is asked each time.

    Returns:
        the answers in order; None where `ask` gave none.
    """
    if answers is None:
        collected: dict[int, Any] = {}
        for batch in ask(list(range(len(asked)))):
            collected |= batch
        return [collected.get(number) for number in range(len(asked))]
    keys = [answers.key(one, sampled) for one in asked]
    first = {key: number for number, key in reversed(list(enumerate(keys))) if key not in answers}
    missing = sorted(first.values())
    known(sorted(set(range(len(keys))) - set(missing)))
    for batch in ask(missing) if missing else ():
        answers.add({keys[number]: answer for number, answer in batch.items()})
    return [answers.get(key) for key in keys]


def score_replies(
    questions: Sequence[Question],
    write: Write,
    reply: Replies,
    read: Read,
    world: Distributed | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Have a model reply to questions, shared among the ranks, and read the chosen option from each reply.

    The chosen option has 0, the others -1, which is an order and no probability.

    Args:
        write: returns the prompt of a question; raises PromptError where there can be none.
        reply: returns the model's replies to prompts.
        read: returns what a reply says.
    """
    scores = Scores([0.0] * len(question.options) for question in questions)
    scores.by_order = [[] for _ in questions]
    prompts: dict[int, Any] = {}
    for index, question in enumerate(questions):
        try:
            prompts[index], cut = write(question)
        except PromptError as error:
            scores.skipped[index] = str(error)
            continue
        if cut:
            scores.truncated.add(index)
    rank_indices = list(prompts) if world is None else list(prompts)[world.rank :: world.size]
    replied = reply([prompts[index] for index in rank_indices], progress)
    replies = list(zip(rank_indices, replied, strict=True))
    for index, text in world.all_gather(replies) if world else replies:
        if isinstance(text, PromptError):
            scores.skipped[index] = str(text)
            continue
        scores.replies[index] = text
        said = read(text, questions[index], prompts[index])
        if said.option is None:
            scores.outcomes[index] = said.outcome
        else:
            scores[index] = [0.0 if i == said.option else -1.0 for i in range(len(scores[index]))]
    return scores
