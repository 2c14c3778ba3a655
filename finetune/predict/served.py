"""Predictor for a causal model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune.cli.inference_args import InferenceArgs
from finetune.data.instructions import Message, parse_instruction
from finetune.data.question import Question
from finetune.evaluation.reply_reader import REFUSED, ReadReply, opens_thought
from finetune.evaluation.scores import Prior, Progress, Scores
from finetune.evaluation.scoring import ScoringConfig
from finetune.models.decoding import Decoding
from finetune.models.run_card import hash_texts
from finetune.models.streaming import Reply, ReplyStream, stripped
from finetune.predict.generative import LETTER_TOKENS, THINKING_TOKENS, Encoded, GenerativePredictor
from finetune.predict.predictor import SERVER
from finetune.predict.served_model import ServedModel
from finetune.predict.served_requests import (
    EXTRAS,
    Asked,
    ServedReply,
    piece_of,
    prompt_body,
    read_reply_of,
    with_decoding,
)
from finetune.predict.served_scoring import ServedScorer
from finetune.prompts.chat import user
from finetune.prompts.option_order import PromptError
from finetune.prompts.protocol import RAW
from finetune.prompts.question_writer import Asking, Examples, QuestionWriter, our_asking
from finetune.prompts.scoring_methods import GENERATE, parse
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, listed
from finetune.runtime.openai_client import OpenAIClient, RefusedError
from finetune.runtime.server_address import api_key, checked_address
from finetune.runtime.strict_json import dumps, too_long

if TYPE_CHECKING:
    from finetune.runtime.distributed import Distributed

OLLAMA = "library"  # owner of the models in its list
ENTRY_KEYS = ("id", "owned_by", "root", "max_model_len", "created")  # of a server's list that are kept


def open_server(flags: InferenceArgs, address: str, flag: str, served_model: str) -> ServedPredictor:
    """Return the predictor of a model on a server, after the server has answered once.

    Args:
        flags: --concurrency, --request_timeout and those of decoding.
        address: address of the server.
        flag: the flag that named it, for messages.
        served_model: name of the model; "" for the only one.

    Raises:
        UserError: no address; no such model, several, or none that is listed; a key that is not accepted.
        RunError: the server does not answer.
    """
    client = OpenAIClient(checked_address(address, flag), api_key(), flags.concurrency, flags.request_timeout)
    try:
        entries = client.models()
    except RefusedError as error:
        if error.status in (401, 403) or not served_model:
            raise
        entries = []  # a server without a list
    names = [str(entry.get("id")) for entry in entries]
    if not served_model and len(names) != 1:
        found = f"有 {len(names)} 個模型：{listed(names)}" if names else "沒有列出任何模型"
        raise UserError(f"{flag} {client.url}：伺服器{found}；請用 --served_model 指定一個")
    client.model = served_model or names[0]
    entry = next((row for row in entries if str(row.get("id")) == client.model), {})
    if names and not entry:
        log(f"⚠️ --served_model {client.model} 不在伺服器列出的模型裡：{listed(names)}")
    return ServedPredictor(client, entry, flags.given)


class ServedPredictor(GenerativePredictor):
    """A causal model behind a server; its tokenizer and its chat template are the server's.

    Args:
        client: knows the server and the model's name.
        entry: the model in the server's list.
        given: names of the flags that were given.
    """

    kind = "causal"
    device = SERVER

    def __init__(self, client: OpenAIClient, entry: dict[str, Any], given: Collection[str]):
        self.client, self.entry, self.given = client, entry, given
        self.model = ServedModel(client)
        self.name = f"{client.model}（{client.url}）"
        self._logged: set[str] = set()
        self.ask(our_asking(), {})

    # ---- exam questions ------------------------------------------------------------------------------------

    def ask(self, asking: Asking, examples: Examples, decoding: Decoding | None = None) -> None:
        """Ask exam questions in this way from now on; arguments as `GenerativePredictor.ask`."""
        self._writer = QuestionWriter(asking, examples)
        decoding = decoding or Decoding(max_new_tokens=0)
        if asking.format == RAW and self.entry.get("owned_by") == OLLAMA:
            log("⚠️ Ollama 的 /completions 仍會套上對話樣板：raw 的成績與直接載入模型的不同；可改用 chat")
        length = decoding.max_new_tokens or self.writer.form.max_new_tokens or self._own_length
        self.decoding = replace(decoding, max_new_tokens=length)

    @property
    def _own_length(self) -> int:
        """Longest reply where nothing else says: enough to think, if it does, and half of its room."""
        room = self.entry.get("max_model_len")
        own = LETTER_TOKENS if self.writer.asking.format == RAW else THINKING_TOKENS
        return min(own, room // 2) if isinstance(room, int) and room > 1 else own

    @property
    def writer(self) -> QuestionWriter:
        """How questions are written."""
        return self._writer

    @property
    def has_chat_template(self) -> bool:
        """True: the server writes conversations. A model that has none is asked with --prompt_format raw."""
        return True

    def method(self, requested: str = "auto") -> str:
        """Return the scoring method; where the server gives no log-probabilities, `auto` is `generate`.

        Raises:
            UserError: a method that fills blanks; one that this server does not allow; what is refused.
            RunError: the server does not answer.
        """
        method = super().method(requested)
        if method == GENERATE or self._scorer.can_score(parse(method)):
            return method
        what = f"{self.name} 不給 logprobs，不能以 {method} 計分"
        if requested != "auto":
            raise UserError(f"--scoring {requested}：{what}；請改用 --scoring generate（讀模型寫的回答）")
        if what not in self._logged:
            self._logged.add(what)
            log(f"{what}：--scoring auto 改用 generate（讀模型寫的回答）")
        return GENERATE

    @property
    def _scorer(self) -> ServedScorer:
        return ServedScorer(self.model, self.writer, self.answers)

    def _score_options(
        self,
        questions: Sequence[Question],
        method: str,
        orders: str,
        prior: Prior | None,
        world: Distributed | None,
        progress: Progress | None,
    ) -> Scores:
        config = ScoringConfig(self.method(method), orders, prior)
        return self._scorer.score(questions, config, progress)

    def prior(self, questions: Sequence[Question]) -> dict[int, list[float]]:
        """Estimate the model's preference for letters, see `OptionScorer.estimate_prior`."""
        return self._scorer.estimate_prior(questions)

    def _written(self, question: Question) -> str | list[Message]:
        order = range(len(question.options))
        if self.writer.asking.format == RAW:
            return self.writer.text(question, order)
        return self.writer.messages(question, order)

    def prompt_of(self, question: Question, method: str) -> tuple[str, list[int]]:
        """Return a question's prompt: the text, or the messages as JSON; token ids are the server's."""
        written = self._written(question)
        return written if isinstance(written, str) else dumps(written, indent=1), []

    def _reply_prompt(self, question: Question) -> tuple[Encoded, int]:
        return self._written(question), 0

    def _reply_to(self, prompts: Sequence[Encoded], progress: Progress | None) -> list[Reply | PromptError]:
        replies = self._replies(prompts, self.decoding, progress)
        return [PromptError(str(one)) if isinstance(one, UserError) else one for one in replies]

    def _opens_thought(self, prompt: Encoded) -> bool:
        return isinstance(prompt, str) and opens_thought(prompt)

    def _read_reply(self, reply: Reply, question: Question, prompt: Encoded) -> ReadReply:
        if isinstance(reply, ServedReply) and reply.refused:
            return ReadReply(None, REFUSED)
        return super()._read_reply(reply, question, prompt)

    # ---- prompts -------------------------------------------------------------------------------------------

    def encode(self, prompt: str | Sequence[Message]) -> Encoded:
        """Return a prompt as messages. Raises UserError: half characters; no conversation."""
        try:
            messages = [user(prompt)] if isinstance(prompt, str) else list(prompt)
            messages = parse_instruction({"messages": messages}, need_answer=False).messages
            texts = [str(message["content"]) for message in messages]
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise UserError("句子不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
        except ValueError as error:
            raise UserError(str(error)) from error
        if reason := too_long(*texts):
            raise UserError(f"句子{reason}")
        return messages

    def generate(
        self,
        prompts: Sequence[Encoded],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> list[Reply]:
        """Generate a reply to each prompt. Raises UserError for one that the server refuses."""
        replies = []
        for reply in self._replies(prompts, decoding, on_done, keeps=False):
            if isinstance(reply, UserError):
                raise reply
            replies.append(reply)
        return replies

    def generate_rows(self, prompts: Sequence[Encoded], decoding: Decoding) -> list[Reply | UserError]:
        """Generate a reply to each prompt; the error stands in the place of one that is refused."""
        return self._replies(prompts, decoding, None, keeps=False)

    def _replies(
        self,
        prompts: Sequence[Encoded],
        decoding: Decoding,
        on_done: Callable[[int], object] | None,
        keeps: bool = True,
    ) -> list[Reply | UserError]:
        asked = [self._request(prompt, decoding) for prompt in prompts]
        found = self.model.ask_all(
            asked,
            lambda number, choice: read_reply_of(choice),
            self.answers if keeps else None,
            lambda number: on_done and on_done(1),
        )
        return [one if isinstance(one, UserError) else ServedReply(*one) for one in found]

    def _request(self, prompt: Encoded, decoding: Decoding) -> Asked:
        return with_decoding(prompt_body(prompt, self.writer.asking.template_kwargs), decoding, self.given)

    def stream(self, prompt: Encoded, decoding: Decoding) -> ReplyStream:
        """Generate the reply to one prompt, piece by piece."""
        ended: list[bool] = []

        def pieces() -> Iterator[str]:
            for choice in self.model.stream(self._request(prompt, decoding)):
                ended.append(choice.get("finish_reason") == "length")
                yield piece_of(choice)

        return ReplyStream(stripped(pieces()), lambda: any(ended))

    # ---- what reports say ----------------------------------------------------------------------------------

    def digest(self) -> str:
        """Hash the server, the model's name and how prompts are written."""
        extras = sorted(EXTRAS.keys() & set(self.given))
        return hash_texts([self.client.url, self.client.model, str(self.writer), *extras])

    def environment(self) -> dict[str, Any]:
        """Return where the model runs; in what it computes is not known."""
        entry = {key: self.entry[key] for key in ENTRY_KEYS if key in self.entry}
        return {
            "precision": "unknown (server)", "device": SERVER, "url": self.client.url,
            "served_model": self.client.model, "server_entry": entry,
        }  # fmt: skip

    def log_summary(self) -> None:
        """Log how many requests had to be sent again."""
        if self.client.retried:
            log(f"伺服器：{self.client.retried} 個請求重試過才有回答")

    def warn(self, *texts: str) -> None:
        """Log nothing: what its tokenizer does not know is not known here."""
