"""Fill-mask: predict characters and words for [MASK].

A word's score is the mean over its tokens of log P(token | the sentence, the tokens before it filled in,
those after it masked): the chain rule from left to right over the run of blanks, in nats per token, so that
words of different lengths can be compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune.evaluation.queries import (
    BATCH_BLANKS,
    BATCH_TOKENS,
    Forward,
    LogprobQuery,
    LogprobRunner,
    batched,
)
from finetune.models.forward import check_numbers
from finetune.models.padding import padded
from finetune.prompts.exam import boundary_tokens
from finetune.runtime.errors import UserError
from finetune.runtime.strict_json import too_long

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEAM = 32  # partial fillings kept; at least four times the number requested

# What people write for a blank and no tokenizer treats as one. A word for it counts wherever it stands; a
# line or an empty bracket may be part of a sentence whose blank is elsewhere.
_WORDS_FOR_BLANK = re.compile(
    r"[\[［【〔<＜{｛(（]\s*(?:[mMｍＭ][aAａＡ][sSｓＳ][kKｋＫ]|blank|BLANK|空格|填空|extra_id_\d+)"
    r"\s*[\]］】〕>＞}｝)）]|\[\s*MASK(?![A-Za-z])"
)
_EMPTY_BRACKETS = re.compile(
    r"_{2,}|＿+|﹏+|[（(][ \t\u3000\xa0]+[)）]|（）|【[ \u3000]*】|〔[ \u3000]*〕|［[ \u3000]*］"
    r"|\[[ \u3000]+\]|「[ \u3000]*」|『[ \u3000]*』|[□▢◻⬜]+"
)


@dataclass(frozen=True)
class Filling:
    """One way to fill the blanks.

    Attributes:
        words: one for each run of blanks.
        score: mean log-probability of the tokens, in nats.
    """

    words: tuple[str, ...]
    score: float
    sentence: str

    @property
    def word(self) -> str:
        """The word, or the words of several runs joined by …."""
        return "…".join(self.words)


@dataclass(frozen=True)
class Blanks:
    """A prompt as token ids, and the positions of its blanks."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    pieces: tuple[str, ...]  # the text between the blanks, one more than there are
    appended: bool = False  # the prompt had no blank; one was added at its end

    @property
    def lookalike(self) -> str:
        """Text that looks like a blank and is none ([mask], ＿＿, （　）); "" without."""
        for piece in self.pieces:
            match = _WORDS_FOR_BLANK.search(piece) or (
                _EMPTY_BRACKETS.search(piece) if self.appended else None
            )
            if match:
                return match[0]
        return ""

    @property
    def runs(self) -> list[list[int]]:
        """Indices of the blanks, grouped by adjacent positions."""
        runs: list[list[int]] = []
        for number, position in enumerate(self.positions):
            if runs and position == self.positions[runs[-1][-1]] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs


def read_blanks(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int, width: int = 1) -> Blanks:
    """Tokenize a prompt and find its blanks.

    Only `[MASK]` is a blank; other special tokens are text. A prompt without one gets one at its end.

    Args:
        max_length: in tokens.
        width: tokens that each blank becomes.

    Raises:
        UserError: it does not fit.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("句子不是 UTF-8；請把終端機的編碼改成 UTF-8") from None
    if reason := too_long(prompt):
        raise UserError(f"句子{reason}")
    prompt = prompt.replace("[MASK]", tokenizer.mask_token)  # some tokenizers call it <mask>
    appended = tokenizer.mask_token not in prompt
    if appended:
        prompt += tokenizer.mask_token
    pieces = prompt.split(tokenizer.mask_token)
    start, end = boundary_tokens(tokenizer)
    ids: list[int] = [start]
    positions: list[int] = []
    for number, piece in enumerate(pieces):
        if number:
            positions += range(len(ids), len(ids) + width)
            ids += [tokenizer.mask_token_id] * width
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids.append(end)
    if len(ids) > max_length:
        raise UserError(f"句子有 {len(ids)} 個 token，這個模型最多 {max_length} 個；請縮短")
    return Blanks(tuple(ids), tuple(positions), tuple(pieces), appended)


@dataclass(frozen=True)
class FillMask:
    """Fill-mask search with one masked language model.

    Args:
        forward: logits at chosen positions, see `models.forward.TokenLogits`.
        longest: tokens of a prompt that the model can read.
    """

    forward: Forward
    tokenizer: PreTrainedTokenizerBase
    device: torch.device | str
    longest: int

    def read(self, prompt: str, width: int = 1) -> Blanks:
        """Find the blanks of a prompt, see `read_blanks`."""
        return read_blanks(self.tokenizer, prompt, self.longest, width)

    @torch.inference_mode()
    def first_blanks(self, prompts: Sequence[Blanks], top_k: int) -> list[list[tuple[str, float]]]:
        """Return the likeliest tokens for the first blank of each prompt.

        Returns:
            for each prompt (word, probability), best first; special tokens and [UNK] are not words.

        Raises:
            UserError: logits that are no numbers.
        """
        tokenizer = self.tokenizer
        count = min(top_k, len(tokenizer) - len(tokenizer.all_special_ids))
        words: dict[int, list[tuple[str, float]]] = {}
        for batch in batched(range(len(prompts)), lambda i: len(prompts[i].ids), lambda i: 1):
            ids, mask = padded([prompts[i].ids for i in batch], tokenizer.pad_token_id)
            rows = torch.arange(len(batch), device=self.device)
            cols = torch.tensor([prompts[i].positions[0] for i in batch], device=self.device)
            logits = self.forward(ids.to(self.device), mask.to(self.device), rows, cols).float()  # (B, V)
            check_numbers(logits)
            probabilities = logits.softmax(-1)
            probabilities[:, tokenizer.all_special_ids] = -1.0
            values, indices = probabilities[:, : len(tokenizer)].topk(count)
            for i, tokens, shares in zip(batch, indices.tolist(), values.tolist(), strict=True):
                texts = [_decode(tokenizer, token) for token in tokens]
                words[i] = list(zip(texts, shares, strict=True))
        return [words[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def words(self, prompt: str, top_k: int, word_length: int, beam: int = 0) -> list[Filling]:
        """Return the likeliest words for the blanks of `prompt`, best first.

        Several blanks are filled jointly, each with one token. A single one may become a word of 1 to
        `word_length` characters. Punctuation is no word.

        Args:
            beam: partial fillings kept at each blank; 0 takes max(BEAM, 4 · top_k).

        Raises:
            UserError: the prompt does not fit.
        """
        beam = beam or max(BEAM, 4 * top_k)
        single = len(self.read(prompt).positions) == 1
        fillings: dict[tuple[str, ...], Filling] = {}
        for width in range(1, word_length + 1 if single else 2):
            try:
                blanks = self.read(prompt, width)
            except UserError:
                if width == 1:
                    raise
                break  # a longer word does not fit; the shorter ones did
            allowed = _words(self.tokenizer) if width == 1 else _characters(self.tokenizer)
            if not len(allowed):  # a vocabulary without single characters
                break
            for tokens, total in self._beam_search(blanks, allowed, beam):
                filling = _filling(self.tokenizer, blanks, tokens, total / len(tokens))
                if filling.words not in fillings or fillings[filling.words].score < filling.score:
                    fillings[filling.words] = filling
        return sorted(fillings.values(), key=lambda filling: -filling.score)[:top_k]

    def _beam_search(self, blanks: Blanks, allowed: Tensor, beam: int) -> list[tuple[tuple[int, ...], float]]:
        """Return (tokens, summed log-probability) of the best fillings, blank by blank from the left."""
        kept: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        for number, position in enumerate(blanks.positions):
            rows = []
            for tokens, _ in kept:
                ids = list(blanks.ids)
                for filled, token in zip(blanks.positions[:number], tokens, strict=True):
                    ids[filled] = token
                rows.append(ids)
            extended = []
            for start, logits in self._logits(rows, position):
                steps = logits.log_softmax(-1)[:, allowed.to(self.device)]  # (rows, words)
                scores = [score for _, score in kept[start : start + len(steps)]]
                totals = steps + torch.tensor(scores, device=self.device)[:, None]
                values, indices = totals.flatten().topk(min(beam, totals.numel()))
                for value, index in zip(values.tolist(), indices.tolist(), strict=True):
                    row, word = divmod(index, len(allowed))
                    extended.append(((*kept[start + row][0], int(allowed[word])), value))
            kept = sorted(extended, key=lambda entry: -entry[1])[:beam]
        return kept

    def rank(self, prompt: str, candidates: Sequence[str]) -> list[Filling]:
        """Rank given words for the first blank of `prompt`, best first, by the same score as `words`.

        Other blanks stay.

        Raises:
            UserError: a word with characters that this model does not know, or one that does not fit.
        """
        blanks = self.read(prompt)
        encoded, problems = [], []
        for word in candidates:
            ids = self.tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if not ids or self.tokenizer.unk_token_id in ids:
                problems.append(f"--candidates：這個模型不認得 {word!r}（含有詞彙裡沒有的字）")
            elif len(blanks.ids) - 1 + len(ids) > self.longest:
                problems.append(f"--candidates：放進 {word!r} 之後超過這個模型的 {self.longest} 個 token")
            encoded.append(ids)
        if problems:
            raise UserError(problems)
        first, mask = blanks.positions[0], self.tokenizer.mask_token_id
        queries: list[list[LogprobQuery]] = []
        for ids in encoded:
            rows = []
            for at, token in enumerate(ids):
                inside = [*ids[:at], *[mask] * (len(ids) - at)]
                row = (*blanks.ids[:first], *inside, *blanks.ids[first + 1 :])
                rows.append(LogprobQuery(row, (first + at,), ((token,),)))
            queries.append(rows)
        with torch.inference_mode():
            runner = LogprobRunner(self.forward, self.tokenizer.pad_token_id, self.device)
            runner([query for rows in queries for query in rows])
        check_numbers(torch.tensor([query.results[0][0] for rows in queries for query in rows]))
        before, *after = blanks.pieces
        rest = self.tokenizer.mask_token.join(after)
        fillings = [
            Filling((word,), sum(query.results[0][0] for query in rows) / len(rows), before + word + rest)
            for word, rows in zip(candidates, queries, strict=True)
        ]
        return sorted(fillings, key=lambda filling: -filling.score)

    def _logits(self, rows: Sequence[Sequence[int]], position: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, logits (B, V)) at one position of equally long rows, in bounded batches."""
        size = max(1, min(BATCH_TOKENS // len(rows[0]), BATCH_BLANKS))
        for start in range(0, len(rows), size):
            ids = torch.tensor(rows[start : start + size], device=self.device)
            numbers = torch.arange(len(ids), device=self.device)
            logits = self.forward(
                ids, torch.ones_like(ids), numbers, torch.full_like(numbers, position)
            ).float()
            check_numbers(logits)
            yield start, logits


def _filling(
    tokenizer: PreTrainedTokenizerBase, blanks: Blanks, tokens: Sequence[int], score: float
) -> Filling:
    words = tuple(_text(tokenizer, [tokens[number] for number in run]) for run in blanks.runs)
    sentence, runs = blanks.pieces[0], iter(words)
    if len(blanks.pieces) == 2:  # one blank, which may have become several tokens
        return Filling(words, score, sentence + next(runs) + blanks.pieces[1])
    firsts = {run[0] for run in blanks.runs}
    for number, piece in enumerate(blanks.pieces[1:]):
        sentence += (next(runs) if number in firsts else "") + piece
    return Filling(words, score, sentence)


def _decode(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of one token without the space around it."""
    return str(tokenizer.decode([token])).strip()


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Join tokens into text without spaces, as Chinese is written."""
    words = [_decode(tokenizer, token) for token in tokens]
    return "".join(word.removeprefix("##") for word in words)


@lru_cache(maxsize=4)
def _words(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the ids of tokens that can be a word of their own: letters and digits, no word piece."""
    ids = [i for i, text in _tokens(tokenizer) if all(unicodedata.category(c)[0] in "LN" for c in text)]
    return torch.tensor(ids, dtype=torch.long)


@lru_cache(maxsize=4)
def _characters(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the ids of tokens that are one Chinese character (or Bopomofo), the parts of longer words."""
    ids = [i for i, text in _tokens(tokenizer) if len(text) == 1 and unicodedata.category(text) == "Lo"]
    return torch.tensor(ids, dtype=torch.long)


def _tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """Return (id, text) of the tokens that are not special and have a text."""
    special = set(tokenizer.all_special_ids)
    decoded = ((i, _decode(tokenizer, i)) for i in range(len(tokenizer)) if i not in special)
    return [(i, text) for i, text in decoded if text]
