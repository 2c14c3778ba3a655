"""One model on a server: what it can do, and many requests at once, each kept as soon as it is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from finetune.evaluation.reply_scoring import answer_all
from finetune.predict.served_requests import Asked, Listed, echoed, echoed_tail, next_tokens, with_next_token
from finetune.runtime.journal import AnswerJournal
from finetune.runtime.openai_client import (
    PROBING,
    GaveUpError,
    OpenAIClient,
    Patience,
    RefusedError,
)
from finetune.runtime.strict_json import dumps
from finetune.runtime.workers import in_threads

TOPS = (20, 5)  # likeliest tokens that servers list: vLLM, SGLang and chat 20, OpenAI's /completions 5
ECHO_SAMPLE = "Question: 1 + 1 = ?\nA. 1\nB. 2\nAnswer:", " B"


class ServedModel:
    """A model on a server.

    Args:
        client: knows the server and the model's name.
    """

    def __init__(self, client: OpenAIClient):
        self.client = client
        self._limit = "max_tokens"
        self._tops: dict[str, int] = {}

    def post(self, asked: Asked, patience: Patience | None = None) -> dict[str, Any]:
        """Send a request; arguments and errors as `OpenAIClient.post`.

        OpenAI's reasoning models want another name for the limit of tokens.
        """
        try:
            return self.client.post(asked.endpoint, self._named(asked.body), patience)
        except RefusedError as error:
            if "max_completion_tokens" not in str(error) or self._limit != "max_tokens":
                raise
            self._limit = "max_completion_tokens"
            return self.client.post(asked.endpoint, self._named(asked.body), patience)

    def stream(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """Yield the choices of an answer as it is written."""
        return self.client.stream(asked.endpoint, self._named(asked.body))

    def _named(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {self._limit if name == "max_tokens" else name: value for name, value in body.items()}

    def ask_all(
        self,
        asked: Sequence[Asked],
        read: Callable[[int, dict[str, Any]], Any],
        answers: AnswerJournal | None,
        done: Callable[[int], object],
    ) -> list[Any]:
        """Send requests, as many at once as the client allows; return what is read from their answers.

        Args:
            asked: the requests.
            read: (number of the request, answer) -> what is kept of it, as JSON.
            answers: keeps what is read; requests it knows are not sent.
            done: called with the number of each request that is answered or refused.

        Returns:
            in order, what was read, or the error of a request that was refused by itself.

        Raises:
            RefusedError: the server refuses all requests.
            GaveUpError: it does not answer.
        """
        refused: dict[str, RefusedError] = {}
        bodies = [dumps([one.endpoint, one.body]) for one in asked]

        def work(number: int) -> Any:
            try:
                return read(number, self.post(asked[number]))
            except RefusedError as error:
                if error.is_for_all:
                    raise
                return error

        def ask(missing: list[int]) -> Iterator[dict[int, Any]]:
            for at, answer in in_threads(work, missing, self.client.concurrency):
                if isinstance(answer, RefusedError):
                    refused[bodies[missing[at]]] = answer
                else:
                    yield {missing[at]: answer}
                done(missing[at])

        def known(numbers: list[int]) -> None:
            for number in numbers:
                done(number)

        identities = [[self.client.url, self.client.model, one.endpoint, one.body] for one in asked]
        sampled = any(one.body.get("temperature") for one in asked)
        found = answer_all(identities, ask, answers, known, sampled)
        if refused and all(answer is None for answer in found) and len(found) > 1:
            raise next(iter(refused.values()))
        return [refused.get(body, answer) for body, answer in zip(bodies, found, strict=True)]

    # ---- what it can do ------------------------------------------------------------------------------------

    def top(self, prompt: Asked) -> int:
        """Return how many of the likeliest next tokens the server lists; 0 where it lists none.

        Args:
            prompt: any question, in the form in which questions will be asked.

        Raises:
            RefusedError: the server refuses the question, log-probabilities or not.
            GaveUpError: it does not answer.
        """
        if prompt.endpoint not in self._tops:
            self._tops[prompt.endpoint] = self._find_top(prompt)
        return self._tops[prompt.endpoint]

    def _find_top(self, prompt: Asked) -> int:
        for top in TOPS:
            answer = self._tried(with_next_token(prompt, top))
            if answer is not None:
                return top if next_tokens(answer) else 0
        self.check(prompt)
        return 0

    def check(self, prompt: Asked) -> None:
        """Ask for one token, so that what is wrong is found before the work begins. Raises as `top`."""
        self.post(Asked(prompt.endpoint, {**prompt.body, "max_tokens": 1, "temperature": 0}))

    @cached_property
    def echo(self) -> int | None:
        """The limit of tokens with which the server echoes a prompt's log-probabilities; None: it does not.

        llama.cpp refuses `echo` or ignores it, some servers want to generate a token at least.
        """
        text, continuation = ECHO_SAMPLE
        for limit in (0, 1):
            answer = self._tried(echoed(text + continuation, limit))
            if answer is not None and echoed_tail(answer, continuation, limit):
                return limit
        return None

    def _tried(self, asked: Asked) -> dict[str, Any] | None:
        """Return the answer to a request that the server may not understand; None where it does not.

        Raises:
            RefusedError: the server refuses all requests.
            GaveUpError: it does not answer.
        """
        try:
            return self.post(asked, PROBING)
        except RefusedError as error:
            if error.is_for_all:
                raise
            return None
        except GaveUpError as error:
            if error.status != 500:  # so some refuse: llama.cpp does `echo`
                raise
            return None


def read_listed(number: int, answer: dict[str, Any]) -> Listed | None:
    """Read the likeliest next tokens."""
    return next_tokens(answer)
