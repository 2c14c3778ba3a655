"""Predictor for encoder-decoders: texts become other texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune.cli.inference_args import InferenceArgs, required
from finetune.evaluation.classification import encode
from finetune.models.decoding import Decoding
from finetune.models.generation import Generator
from finetune.models.run_card import RunCard
from finetune.models.streaming import Reply, ReplyStream
from finetune.models.tokenizer import prompt_length
from finetune.predict.predictor import LocalPredictor
from finetune.runtime.console import log
from finetune.runtime.errors import UserError, shown
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.runtime.distributed import Distributed


class Seq2SeqPredictor(LocalPredictor):
    """An encoder-decoder: T5, mT5, BART, mBART and their like.

    Args: as `LocalPredictor`.

    Attributes:
        prefix: text before every input, as the run card says.
        max_length: tokens of an input that are read; as the run card says, as far as the model can.
        truncation_logged: the warning about an input that was too long was given.
    """

    has_chat_template = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        name: str = "",
    ):
        super().__init__(model, tokenizer, device, name)
        card = self.card or RunCard()
        self.prefix = str(card.flags.get("prefix") or "")
        self.max_length: int = prompt_length(model.config, tokenizer, card.max_length)
        self.truncation_logged = False

    @property
    def trained_columns(self) -> tuple[str, str]:
        """The columns of source and target in the training data; "" where that is not known."""
        flags = self.card.flags if self.card else {}
        return str(flags.get("text_column") or ""), str(flags.get("label_column") or "")

    def trained_length(self, decoding: Decoding, given: bool) -> Decoding:
        """Return the decoding with outputs as long as in training, unless a length was `given`."""
        trained = self.card.flags.get("max_target_length") if self.card else None
        if given or not isinstance(trained, int):
            return decoding
        return replace(decoding, max_new_tokens=max(trained, decoding.min_new_tokens))

    def decoding_of(self, flags: InferenceArgs) -> Decoding:
        """Return how outputs are written: as the flags say, without a length as long as in training."""
        return self.trained_length(required(flags.decoding), "max_new_tokens" in flags.given)

    def encode(self, prompt: object) -> list[int]:
        """Return the token ids of an input, with the prefix; one that is too long loses its end.

        Raises:
            UserError: what is no text, or half characters, which no tokenizer can read.
        """
        if not isinstance(prompt, str):
            raise UserError(f"每一筆應是一段文字，得到 {shown(prompt)}；這個模型不會對話")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError("文字不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
        if reason := too_long(prompt):
            raise UserError(f"文字{reason}")
        row = encode(self.tokenizer, self.prefix + prompt, "", self.max_length)
        if row.cut and not self.truncation_logged:
            self.truncation_logged = True
            log(f"⚠️ 有文字超過 {self.max_length} 個 token，超過的部分沒有讀")
        return list(row.ids)

    def with_system(self, prompt: Any, system_prompt: str | None) -> Any:
        """Return the prompt. Raises UserError for a system prompt: there is no place for one."""
        if system_prompt is not None:
            raise UserError(
                f"--system_prompt {shown(system_prompt)}：這個模型把一段文字轉換成另一段，不會對話，"
                "沒有系統提示的位置；請不加"
            )
        return prompt

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        on_done: Callable[[int], object] | None = None,
    ) -> list[Reply]:
        """Write the output for each input, as `encode` returns it."""
        return self._generator(decoding).generate(prompts, on_done)

    def generate_rows(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> Sequence[Reply | UserError]:
        """Write the output for each input as `generate`."""
        return self.generate(prompts, decoding)

    def write(self, texts: Sequence[str], decoding: Decoding, world: Distributed) -> list[Reply]:
        """Write the output for each text; the ranks share the work and every one gets all. Collective."""
        mine = range(world.rank, len(texts), world.size)
        replies = self.generate([self.encode(texts[at]) for at in mine], decoding)
        gathered = dict(world.all_gather(list(zip(mine, replies, strict=True))))
        return [gathered[at] for at in range(len(texts))]

    def stream(self, prompt: Sequence[int], decoding: Decoding) -> ReplyStream:
        """Write the output for one input, piece by piece."""
        return self._generator(decoding).stream(prompt)

    def truncation_note(self, prompt: object, decoding: Decoding, limit: str, remedy: str) -> str:
        """Describe why an output was cut short; arguments as of `GenerativePredictor`."""
        if decoding.max_new_tokens >= self.longest:
            return f"（到了這個模型的上限，沒寫完：最多寫 {self.longest} 個 token）"
        return f"（到了 {limit} {decoding.max_new_tokens} 的上限，沒寫完；{remedy}）"

    def method(self, requested: str = "auto") -> str:
        """Raise UserError: an encoder-decoder answers no multiple-choice questions."""
        raise UserError(
            f"{self.name or '這個模型'} 是文字轉換模型，不會答選擇題；請直接給要轉換的文字（generate_text）"
        )

    def _generator(self, decoding: Decoding) -> Generator:
        return Generator(self.model, self.tokenizer, decoding, ())

    def _prompt_settings(self) -> list[str]:
        return [self.prefix, str(self.max_length)]
