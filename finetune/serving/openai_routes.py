"""Paths in OpenAI's shape: /v1/completions, /v1/chat/completions and /v1/models."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import cached_property, partial
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from finetune.models.decoding import Decoding
from finetune.models.forward import config_of
from finetune.models.reply_batch import LENGTH, ReplyEvent
from finetune.predict.causal import CausalLMPredictor
from finetune.predict.predictor import UNKNOWN_LENGTH
from finetune.predict.seq2seq import Seq2SeqPredictor
from finetune.runtime.errors import RunError, UserError
from finetune.runtime.strict_json import dumps
from finetune.serving.errors import ApiError
from finetune.serving.generation import Prompt
from finetune.serving.openai_answers import Answer, ChatShape, Choice, CompletionShape, Shape, usage
from finetune.serving.openai_schemas import ChatBody, CompletionBody, WritingBody
from finetune.serving.prompt_logprobs import prompt_logprobs
from finetune.serving.service import Service
from finetune.serving.token_texts import TokenTexts
from finetune.serving.watch import Observed, observe

COMPLETIONS, CHAT_COMPLETIONS = "/v1/completions", "/v1/chat/completions"
OWNER = "fine-tuning-llm"
DONE = "data: [DONE]\n\n"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Json = dict[str, Any]


def openai_routes(service: Service) -> APIRouter:
    """Return the routes in OpenAI's shape."""
    router = APIRouter()
    writing = Writing(service) if service.decoding_loop else None
    entry = model_entry(service)

    @router.post(COMPLETIONS, response_model=None)
    async def completions(request: Request, body: CompletionBody) -> Response | Json:
        """Go on from texts."""
        assert writing is not None
        shape = CompletionShape(service.settings.name, writing.texts)
        return await writing.answer(request, body, lambda: writing.completion_choices(body), shape)

    @router.post(CHAT_COMPLETIONS, response_model=None)
    async def chat_completions(request: Request, body: ChatBody) -> Response | Json:
        """Reply to a conversation."""
        assert writing is not None
        writing.check_chat()
        shape = ChatShape(service.settings.name, writing.texts)
        return await writing.answer(request, body, lambda: writing.chat_choices(body), shape)

    @router.get("/v1/models")
    async def models() -> Json:
        """Return the model that is served, as a list."""
        return {"object": "list", "data": [entry]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        """Return the model that is served."""
        if name != service.settings.name:
            raise ApiError(404, f"沒有 {name[:80]} 這個模型；這裡的是 {service.settings.name}")
        return entry

    return router


def model_entry(service: Service) -> Json:
    """Return what /v1/models tells of the model."""
    longest = service.predictor.longest
    room = {} if longest >= UNKNOWN_LENGTH else {"max_model_len": longest}
    return {
        "id": service.settings.name, "object": "model", "created": int(time.time()), "owned_by": OWNER,
        "kind": service.kind, **room,
    }  # fmt: skip


class Writing:
    """Answers of a model that writes.

    Args:
        service: the model in service.
    """

    def __init__(self, service: Service):
        self.service = service
        self.predictor = cast("CausalLMPredictor | Seq2SeqPredictor", service.predictor)
        assert service.decoding_loop is not None
        self.loop = service.decoding_loop

    @cached_property
    def texts(self) -> TokenTexts:
        """Texts of single tokens."""
        return TokenTexts(self.predictor.tokenizer)

    @property
    def default(self) -> Decoding:
        """How a reply is written whose request says nothing: as the command line does."""
        predictor = self.predictor
        return (
            predictor.trained_length(Decoding(), False)
            if isinstance(predictor, Seq2SeqPredictor)
            else Decoding()
        )

    def check_chat(self) -> None:
        """Refuse a conversation where the model has no chat template. Raises ApiError."""
        if not self.predictor.has_chat_template:
            raise ApiError(
                400,
                f"{CHAT_COMPLETIONS}：這個模型沒有對話樣板（chat_template），只會續寫；請改用 {COMPLETIONS}",
            )

    # ---- prompts -------------------------------------------------------------------------------------------

    def completion_choices(self, body: CompletionBody) -> list[Choice]:
        """Return the replies to be written, with the echo of their prompts.

        Raises:
            UserError: a prompt that the model cannot read, an option that it has not.
        """
        if self.service.kind == "seq2seq" and (body.echo or body.logprobs is not None):
            raise UserError("echo、logprobs：這個模型把一段文字轉換成另一段，沒有這兩項；請拿掉")
        choices: list[Choice] = []
        for prompt in body.prompts:
            ids = self._ids(prompt)
            text = prompt if isinstance(prompt, str) else str(self.predictor.tokenizer.decode(ids))
            scored = body.echo and body.logprobs is not None
            before = prompt_logprobs(self.predictor, ids, body.logprobs or 0) if scored else []
            for decoding in body.decodings(self.default):
                choice = Choice(len(choices), Prompt(ids, decoding, body.logprobs))
                if body.echo:
                    choice.text = text
                    choice.logprobs = [None, *before] if scored else []
                else:
                    choice.offset = len(text)
                if body.max_tokens == 0:
                    choice.reason = LENGTH
                else:
                    self.loop.check(choice.prompt)
                choices.append(choice)
        return choices

    def _ids(self, prompt: str | list[int]) -> list[int]:
        """Return the token ids of a prompt."""
        if isinstance(prompt, str):
            predictor = self.predictor
            ids = (
                predictor.encode_text(prompt)
                if isinstance(predictor, CausalLMPredictor)
                else predictor.encode(prompt)
            )
            if not ids:
                raise UserError("prompt 是空的（沒有任何 token）；請給至少一個字")
            return ids
        words = int(config_of(self.predictor.model).get_text_config(decoder=True).vocab_size)
        if wrong := [token for token in prompt if token >= words]:
            raise UserError(f"prompt：token {wrong[0]} 超出這個模型的詞表（0 到 {words - 1}）")
        return prompt

    def chat_choices(self, body: ChatBody) -> list[Choice]:
        """Return the replies to be written.

        Raises:
            UserError: a conversation that the chat template refuses, or whose last message is not the user's.
        """
        predictor = cast(CausalLMPredictor, self.predictor)
        if body.messages[-1].role != "user":
            raise UserError(
                f"messages：最後一句是 {body.messages[-1].role} 的；要是使用者（user）說的，才能回答"
            )
        roles = {"developer": "system"}
        ids = predictor.encode(
            [{"role": roles.get(one.role, one.role), "content": one.text} for one in body.messages]
        )
        top = body.top_logprobs if body.logprobs else None
        choices = [
            Choice(number, Prompt(ids, decoding, top), predictor.reply_filter())
            for number, decoding in enumerate(body.decodings(self.default))
        ]
        self.loop.check(choices[0].prompt)
        return choices

    # ---- answers -------------------------------------------------------------------------------------------

    async def answer(
        self, request: Request, body: WritingBody, prepare: Callable[[], list[Choice]], shape: Shape
    ) -> Response | Json:
        """Answer a request, whole or as a stream; errors as of `Service.run`.

        Args:
            prepare: returns the replies to be written.
        """
        service = self.service
        ticket = service.admit()

        def release() -> None:
            ticket.cancel()
            service.release()

        async def whole() -> Json:
            choices = await service.in_worker(ticket, prepare)
            observe(request, *_observed(body, choices))
            async with aclosing(self._written(choices)) as parts:
                async for _ in parts:
                    pass
            return Answer(shape).whole(choices)

        is_streaming = False
        try:
            if not body.stream:
                return await service.while_waiting(request, whole())
            choices = await service.while_waiting(request, service.in_worker(ticket, prepare))
            observe(request, *_observed(body, choices))
            stream = EventStream(self._parts(choices, Answer(shape), body), release)
            is_streaming = True  # the stream releases the request at its end
            return stream
        finally:
            if not is_streaming:
                release()

    async def _written(self, choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, str, ReplyEvent]]:
        """Write the replies; yield what became certain of their texts, and by which event.

        Raises:
            ApiError: the model failed (500).
            UserError, TimeoutError: as `DecodingLoop.write`.
        """
        writing = [choice for choice in choices if not choice.reason]
        seconds = self.service.settings.request_timeout
        try:
            async with aclosing(self.loop.write([choice.prompt for choice in writing], seconds)) as events:
                async for number, event in events:
                    choice = writing[number]
                    yield choice, choice.take(event), event
        except RunError as error:
            raise ApiError(500, str(error)) from error
        finally:
            counted = usage(choices)
            self.service.metrics.wrote(counted["prompt_tokens"], counted["completion_tokens"])

    async def _parts(
        self, choices: Sequence[Choice], answer: Answer, body: WritingBody
    ) -> AsyncIterator[str]:
        """Yield the parts of a streamed answer as server-sent events."""
        counts = bool(body.stream_options.include_usage)
        shape = answer.shape

        def part(*entries: Json) -> str:
            return sent(answer.part(entries) | ({"usage": None} if counts else {}))

        try:
            for choice in choices:
                if first := shape.first(choice):
                    yield part(first)
            async with aclosing(self._written(choices)) as written:
                async for choice, piece, event in written:
                    if piece or event.reason or event.logprob:
                        yield part(shape.part(choice, piece, [event.logprob]))
            if counts:
                yield sent(answer.part([], usage(choices)))
        except UserError as error:
            yield sent(ApiError(422, "；".join(error.problems)).body())
        except ApiError as error:
            yield sent(error.body())
        except TimeoutError:
            yield sent(self.service.time_is_up.body())
        yield DONE


def _observed(body: WritingBody, choices: Sequence[Choice]) -> Iterator[Observed]:
    """Yield each prompt that is a text, with the first reply to it, for --watch."""
    echoed = body.echo if isinstance(body, CompletionBody) else False
    for prompt, choice in zip(_prompts(body), choices[:: body.n], strict=True):
        if prompt:
            start = len(prompt[0]) * echoed
            yield Observed(prompt, partial(_reply, choice, start))


def _prompts(body: WritingBody) -> list[list[str]]:
    """Return the texts of each prompt; none of one that is given as token ids."""
    if isinstance(body, ChatBody):
        return [[one.text for one in body.messages]]
    assert isinstance(body, CompletionBody)
    return [[prompt] if isinstance(prompt, str) else [] for prompt in body.prompts]


def _reply(choice: Choice, start: int) -> Json:
    return {"response": choice.text[start:]}


def sent(content: Json) -> str:
    """Return a server-sent event."""
    return f"data: {dumps(content)}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events of an accepted request.

    Args:
        events: the events; closed when the client goes away.
        release: called at the end, however it comes.
    """

    def __init__(self, events: AsyncIterator[str], release: Callable[[], object]):
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
