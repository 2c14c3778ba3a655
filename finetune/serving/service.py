"""A model in service: requests are accepted up to a bound, and worked for in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from starlette.requests import Request

from finetune.models.batch_invariance import is_batch_invariant
from finetune.models.streaming import STOPS
from finetune.predict.causal import CausalLMPredictor
from finetune.predict.embedder import Embedder
from finetune.predict.predictor import LocalPredictor
from finetune.runtime.errors import UserError
from finetune.serving import tickets
from finetune.serving.compute import ComputeThread
from finetune.serving.errors import ApiError
from finetune.serving.field_problems import in_fields
from finetune.serving.generation import DecodingLoop
from finetune.serving.json_log import JsonLog
from finetune.serving.metrics import Metrics
from finetune.serving.settings import WORKERS, ServerSettings
from finetune.serving.shared_forward import SharedForward
from finetune.serving.shared_replies import SharedReplies
from finetune.serving.shared_tokenizer import lock_tokenizer
from finetune.serving.tickets import CancelledError, Ticket
from finetune.serving.watch import Watch

T = TypeVar("T")
WRITING_KINDS = ("causal", "seq2seq")
RETRY_SECONDS = 1  # Retry-After of a full queue


class Service:
    """A model in service.

    Args:
        predictor: the model; its forward pass is shared among requests from now on.
        settings: bounds and names.
        runs_here: the current thread will run the model, by `compute.work`; else a thread of its own does.

    Attributes:
        compute: the thread that runs the model.
        decoding_loop: writes replies; None for a model that writes none.
        accepted: requests that are accepted and not answered yet.
        draining: no more requests are accepted.
        unread: answers that were given up, since their clients did not read them.
        mergeable: requests may share a pass, see `may_merge`.
        metrics: figures of what is done.
        log: JSON lines of what is done.
        watch: notes features of requests (--watch); None where that is not wanted.
    """

    def __init__(self, predictor: LocalPredictor, settings: ServerSettings, runs_here: bool = False):
        self.predictor, self.settings = predictor, settings
        self.accepted, self.draining, self.unread = 0, False, 0
        facts = {"name": settings.name, "kind": self.kind, **predictor.environment()}
        self.metrics = Metrics(self, {name: str(fact) for name, fact in facts.items()}, settings.max_queue)
        self.log = JsonLog(self.metrics.dropped, settings.log_texts, settings.debug)
        self.compute = ComputeThread(self.metrics.passed, self.log.error)
        # What they compute is little; the cores are the compute thread's.
        self._workers = ThreadPoolExecutor(WORKERS, "request", torch.set_num_threads, (1,))
        pad_id, self.mergeable = predictor.tokenizer.pad_token_id or 0, may_merge(predictor)
        predictor.forward = SharedForward(predictor.forward, self.compute, pad_id, self.mergeable)
        self.watch = Watch(settings.watch, predictor, settings.name, self._told) if settings.watch else None
        lock_tokenizer(predictor.tokenizer)  # once --watch has its copy
        self.decoding_loop = self._decoding_loop()
        if isinstance(predictor, CausalLMPredictor):
            predictor.chat.serve_strangers()  # before there are threads: it forks
            assert self.decoding_loop is not None
            predictor.write_replies = SharedReplies(
                self.decoding_loop, settings.request_timeout, self.metrics.wrote
            )
        with contextlib.suppress(UserError):  # whose pooling is not known: each request is told
            _ = self.embedder  # made now: it reads the model's folder, which may go away
        if runs_here:
            self.compute.adopt()
        else:
            threads = torch.get_num_threads()
            self.compute.start()
            self.compute.run(partial(_use_threads, threads))
        if self.watch:
            self.watch.start()

    def _decoding_loop(self) -> DecodingLoop | None:
        """Return what writes the replies; None for a model that writes none."""
        predictor = self.predictor
        stops, ends = (STOPS, predictor.ends) if isinstance(predictor, CausalLMPredictor) else ((), None)
        if self.kind not in WRITING_KINDS:
            return None
        return DecodingLoop(predictor.model, predictor.tokenizer, stops, ends, self.compute)

    def _told(self, message: str) -> None:
        self.log.write("watch", message=message)

    @property
    def kind(self) -> str:
        """The kind of the model, see models/kinds.py."""
        return self.predictor.kind

    @property
    def embedder(self) -> Embedder:
        """The embedder of the model. Raises UserError where its pooling is not known."""
        predictor, pooling = self.predictor, self.settings.pooling
        return Embedder.of(predictor.model, predictor.tokenizer, predictor.device, pooling)

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        if self.watch:
            self.watch.close()
        self.compute.stop()
        self.log.close()

    def admit(self) -> Ticket:
        """Accept a request; `release` must follow.

        Raises:
            ApiError: 429 with Retry-After where too many wait; 503 where the server is ending.
        """
        if self.draining:
            raise ApiError(503, "伺服器正在結束，不再收新的請求；請稍後再試，或換一台")
        if self.accepted >= self.settings.max_queue:
            raise ApiError(
                429, f"已經有 {self.accepted} 個請求在等，這是 --max_queue 的上限；請稍後再試",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )  # fmt: skip
        self.accepted += 1
        return Ticket()

    def release(self) -> None:
        """Note that an accepted request is answered or given up."""
        self.accepted -= 1

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """Run work for a request in a thread of its own, while its client waits.

        Args:
            work: runs the model through the predictor; `UserError` is answered with 422.

        Raises:
            ApiError: too many requests (429), what cannot be answered (422), time is up (504).
            CancelledError: the client is gone.
        """
        ticket = self.admit()
        try:
            return await self.while_waiting(request, self.in_worker(ticket, work))
        finally:
            ticket.cancel()
            self.release()

    async def in_worker(self, ticket: Ticket, work: Callable[[], T]) -> T:
        """Run work for an accepted request in a thread of its own."""
        ticket.event_loop = asyncio.get_running_loop()
        future = self._submit(ticket, work)
        try:
            return await asyncio.wrap_future(future)
        finally:
            future.cancel()

    def _submit(self, ticket: Ticket, work: Callable[[], T]) -> Future[T]:
        context = contextvars.copy_context()
        context.run(tickets.current.set, ticket)

        def checked() -> T:
            ticket.check()
            return work()

        return self._workers.submit(context.run, checked)

    async def while_waiting(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of work for an accepted request, while its client waits; errors as of `run`."""
        answer = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait(
                (answer, gone), timeout=self.settings.request_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if answer in done:
                return answer.result()
        except UserError as error:
            raise ApiError(422, "；".join(map(in_fields, error.problems))) from error
        finally:
            gone.cancel()
            answer.cancel()
        if gone in done:
            raise CancelledError
        raise self.time_is_up

    @property
    def time_is_up(self) -> ApiError:
        """The answer to a request that took too long."""
        return ApiError(
            504, f"{self.settings.request_timeout:g} 秒內沒有算完（--request_timeout），已經放棄這個請求"
        )


def _use_threads(count: int) -> None:
    """Have torch use so many threads in this one, whatever workers set for theirs.

    A thread takes the number that any thread has set last when it first asks for it: so it asks before.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


def may_merge(predictor: LocalPredictor) -> bool:
    """Return whether requests may share a pass of this model.

    In fp32 on a CPU only where the digits of an answer do not depend on what runs beside it. On a GPU and in
    bf16 the last digits depend on the shape of a batch, whichever batch it is.
    """
    exact = predictor.environment() == {"precision": "fp32", "device": "cpu"}
    words: Any = predictor.model.get_input_embeddings()
    if predictor.kind == "seq2seq":  # its replies are written, in batches of their own
        return False
    forward, device, pad_id = predictor.forward, predictor.device, predictor.tokenizer.pad_token_id or 0
    if not exact:
        return True
    try:
        return is_batch_invariant(forward, pad_id, words.num_embeddings, device, predictor.longest)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return False  # a family that does not take rows such as are tried: each request by itself


async def _disconnected(request: Request) -> None:
    """Wait until the client of a request whose body was read is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
