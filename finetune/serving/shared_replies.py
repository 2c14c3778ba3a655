"""Replies written in the running batch, for the threads that work for requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

from finetune.models.decoding import Decoding
from finetune.models.reply_batch import STOP
from finetune.models.streaming import Reply
from finetune.serving.generation import DecodingLoop, Prompt
from finetune.serving.tickets import current, wait_for


class SharedReplies:
    """What writes the replies to prompts, called as `Generator.generate`: a token of each in a step of all.

    Args:
        decoding_loop: writes them.
        seconds: that they may take.
        wrote: told the tokens of the prompts, and those that were written.
    """

    def __init__(self, decoding_loop: DecodingLoop, seconds: float, wrote: Callable[[int, int], object]):
        self._decoding_loop, self._seconds, self._wrote = decoding_loop, seconds, wrote

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> list[Reply]:
        """Return the replies for the request that the current thread works for.

        Raises:
            UserError: a prompt that does not fit.
            RunError: the model failed.
            CancelledError: the request has been given up meanwhile.
        """
        ticket = current.get()
        assert ticket is not None and ticket.event_loop is not None, "only a request asks for replies"
        asked = [Prompt(ids, decoding) for ids in prompts]
        for prompt in asked:
            self._decoding_loop.check(prompt)
        replies = wait_for(asyncio.run_coroutine_threadsafe(self._write(asked), ticket.event_loop))
        if on_done:
            on_done(len(replies))
        return replies

    async def _write(self, prompts: Sequence[Prompt]) -> list[Reply]:
        texts, reasons, count = [""] * len(prompts), [""] * len(prompts), 0
        try:
            async with aclosing(self._decoding_loop.write(prompts, self._seconds)) as events:
                async for number, event in events:
                    texts[number] += event.text
                    reasons[number] = event.reason
                    count += 1
        finally:
            self._wrote(sum(len(prompt.ids) for prompt in prompts), count)
        return [Reply(text, reason != STOP) for text, reason in zip(texts, reasons, strict=True)]
