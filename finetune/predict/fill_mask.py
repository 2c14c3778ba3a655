"""[MASK] becomes characters and words.

A word's score is the mean over its tokens of log P(token | the sentence, the tokens before it filled in,
those after it hidden): the chain rule from left to right over the run of blanks, in nats per token, so that
words of different lengths can be compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

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

BEAM = 32  # partial fillings kept; at least four times the number asked for


# What people write for a blank and no tokenizer obeys. A word for it is one wherever it stands; a line or an
# empty bracket may be part of a sentence whose blank stands elsewhere.
_WORDS_FOR_BLANK = re.compile(
    r"[\[［【〔<＜{｛(（]\s*(?:[mMｍＭ][aAａＡ][sSｓＳ][kKｋＫ]|blank|BLANK|空格|填空|extra_id_\d+)"
    r"\s*[\]］】〕>＞}｝)）]|\[\s*MASK(?![A-Za-z])"
)
_EMPTY_PLACES = re.compile(
    r"_{2,}|＿+|﹏+|[（(][ \t\u3000\xa0]+[)）]|（）|【[ \u3000]*】|〔[ \u3000]*〕|［[ \u3000]*］"
    r"|\[[ \u3000]+\]|「[ \u3000]*」|『[ \u3000]*』|[□▢◻⬜]+"
)


@dataclass(frozen=True)
class Filling:
    """One way to fill the blanks. `words`: of each run of blanks; `score`: nats per token."""

    words: tuple[str, ...]
    score: float
    sentence: str

    @property
    def word(self) -> str:
        """The word, or the words of several runs with … between them."""
        return "…".join(self.words)


@dataclass(frozen=True)
class Blanks:
    """A prompt as token ids, and where its blanks are."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    pieces: tuple[str, ...]  # the text between the blanks, one more than there are
    appended: bool = False  # the prompt had none

    @property
    def meant(self) -> str:
        """What was meant for a blank and is none: [mask], ＿＿, （　）; "" without."""
        for piece in self.pieces:
            found = _WORDS_FOR_BLANK.search(piece) or (_EMPTY_PLACES.search(piece) if self.appended else None)
            if found:
                return found[0]
        return ""

    @property
    def runs(self) -> list[list[int]]:
        """Indices of blanks that stand side by side, together."""
        runs: list[list[int]] = []
        for number, place in enumerate(self.places):
            if runs and place == self.places[runs[-1][-1]] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs


def read_blanks(tokenizer, prompt: str, max_length: int, width: int = 1) -> Blanks:
    """Reads a prompt. Only `[MASK]` is obeyed; other such words are text. Without one it gets one at its end.

    Args:
        width: a single blank becomes so many tokens.

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
    ids, places = [start], []
    for number, piece in enumerate(pieces):
        if number:
            places += range(len(ids), len(ids) + width)
            ids += [tokenizer.mask_token_id] * width
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids.append(end)
    if len(ids) > max_length:
        raise UserError(f"句子有 {len(ids)} 個 token，這個模型最多 {max_length} 個；請縮短")
    return Blanks(tuple(ids), tuple(places), tuple(pieces), appended)


@torch.inference_mode()
def fill_first_blanks(
    forward: Forward, tokenizer, prompts: Sequence[Blanks], top_k: int, device
) -> list[list[tuple[str, float]]]:
    """The likeliest tokens for the first blank of each prompt.

    Returns:
        of each (word, probability), best first; special tokens and [UNK] are not words.

    Raises:
        UserError: logits that are no numbers.
    """
    words = min(top_k, len(tokenizer) - len(tokenizer.all_special_ids))
    found: dict[int, list[tuple[str, float]]] = {}
    for batch in batched(range(len(prompts)), lambda i: len(prompts[i].ids), lambda i: 1):
        ids, mask = padded([prompts[i].ids for i in batch], tokenizer.pad_token_id)
        rows = torch.arange(len(batch), device=device)
        cols = torch.tensor([prompts[i].places[0] for i in batch], device=device)
        logits = forward(ids.to(device), mask.to(device), rows, cols).float()  # (B, V)
        check_numbers(logits)
        probabilities = logits.softmax(-1)
        probabilities[:, tokenizer.all_special_ids] = -1.0
        values, indices = probabilities[:, : len(tokenizer)].topk(words)
        for i, tokens, shares in zip(batch, indices.tolist(), values.tolist(), strict=True):
            texts = [tokenizer.decode([token]).strip() for token in tokens]
            found[i] = list(zip(texts, shares, strict=True))
    return [found[i] for i in range(len(prompts))]


@torch.inference_mode()
def fill_words(
    forward: Forward,
    tokenizer,
    prompt: str,
    top_k: int,
    word_length: int,
    max_length: int,
    device,
    beam: int = 0,
) -> list[Filling]:
    """The likeliest words for the blanks of `prompt`, best first.

    Several blanks are filled jointly, each with one token. A single one may become a word of 1 to
    `word_length` characters. Punctuation is no word.

    Args:
        beam: partial fillings kept at each blank; 0 takes max(BEAM, 4 · top_k).

    Raises:
        UserError: the prompt does not fit.
    """
    beam = beam or max(BEAM, 4 * top_k)
    single = len(read_blanks(tokenizer, prompt, max_length).places) == 1
    found: dict[tuple[str, ...], Filling] = {}
    for width in range(1, word_length + 1 if single else 2):
        try:
            blanks = read_blanks(tokenizer, prompt, max_length, width)
        except UserError:
            if width == 1:
                raise
            break  # a longer word does not fit; the shorter ones did
        allowed = _words(tokenizer) if width == 1 else _characters(tokenizer)
        if not len(allowed):  # a vocabulary without single characters
            break
        for tokens, total in _beam(forward, blanks, allowed, beam, device):
            filling = _filling(tokenizer, blanks, tokens, total / len(tokens))
            if filling.words not in found or found[filling.words].score < filling.score:
                found[filling.words] = filling
    return sorted(found.values(), key=lambda filling: -filling.score)[:top_k]


def _beam(
    forward: Forward, blanks: Blanks, allowed: Tensor, beam: int, device
) -> list[tuple[tuple[int, ...], float]]:
    """(tokens, summed log-probability) of the best fillings, blank by blank from the left."""
    kept: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for number, place in enumerate(blanks.places):
        rows = []
        for tokens, _ in kept:
            ids = list(blanks.ids)
            for before, token in zip(blanks.places[:number], tokens, strict=True):
                ids[before] = token
            rows.append(ids)
        grown = []
        for at, logits in _logits(forward, rows, place, device):
            steps = logits.log_softmax(-1)[:, allowed.to(device)]  # (rows, words)
            totals = steps + torch.tensor([t for _, t in kept[at : at + len(steps)]], device=device)[:, None]
            values, indices = totals.flatten().topk(min(beam, totals.numel()))
            for value, index in zip(values.tolist(), indices.tolist(), strict=True):
                row, word = divmod(index, len(allowed))
                grown.append(((*kept[at + row][0], int(allowed[word])), value))
        kept = sorted(grown, key=lambda one: -one[1])[:beam]
    return kept


def rank_candidates(
    forward: Forward, tokenizer, prompt: str, candidates: Sequence[str], max_length: int, device
) -> list[Filling]:
    """The given words for the first blank of `prompt`, best first, by the same score; other blanks stay.

    Raises:
        UserError: a word with characters that this model does not know, or one that does not fit.
    """
    blanks = read_blanks(tokenizer, prompt, max_length)
    encoded, problems = [], []
    for word in candidates:
        ids = tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not ids or tokenizer.unk_token_id in ids:
            problems.append(f"--candidates：這個模型不認得 {word!r}（含有詞彙裡沒有的字）")
        elif len(blanks.ids) - 1 + len(ids) > max_length:
            problems.append(f"--candidates：放進 {word!r} 之後超過這個模型的 {max_length} 個 token")
        encoded.append(ids)
    if problems:
        raise UserError(problems)
    first, mask = blanks.places[0], tokenizer.mask_token_id
    probes: list[list[LogprobQuery]] = []
    for ids in encoded:
        rows = []
        for at, token in enumerate(ids):
            inside = [*ids[:at], *[mask] * (len(ids) - at)]
            row = (*blanks.ids[:first], *inside, *blanks.ids[first + 1 :])
            rows.append(LogprobQuery(row, (first + at,), ((token,),)))
        probes.append(rows)
    with torch.inference_mode():
        LogprobRunner(forward, tokenizer.pad_token_id, device)([probe for rows in probes for probe in rows])
    check_numbers(torch.tensor([probe.results[0][0] for rows in probes for probe in rows]))
    before, *after = blanks.pieces
    found = [
        Filling(
            (word,), sum(probe.results[0][0] for probe in rows) / len(rows),
            before + word + tokenizer.mask_token.join(after),
        )
        for word, rows in zip(candidates, probes, strict=True)
    ]  # fmt: skip
    return sorted(found, key=lambda filling: -filling.score)


def _filling(tokenizer, blanks: Blanks, tokens: Sequence[int], score: float) -> Filling:
    words = tuple(_text(tokenizer, [tokens[number] for number in run]) for run in blanks.runs)
    sentence, runs = blanks.pieces[0], iter(words)
    if len(blanks.pieces) == 2:  # one blank, which may have become several tokens
        return Filling(words, score, sentence + next(runs) + blanks.pieces[1])
    firsts = {run[0] for run in blanks.runs}
    for number, piece in enumerate(blanks.pieces[1:]):
        sentence += (next(runs) if number in firsts else "") + piece
    return Filling(words, score, sentence)


def _text(tokenizer, tokens: Sequence[int]) -> str:
    """Tokens as text; characters stand side by side, as Chinese is written."""
    words = [tokenizer.decode([token]).strip() for token in tokens]
    return "".join(word.removeprefix("##") for word in words)


@lru_cache(maxsize=4)
def _words(tokenizer) -> Tensor:
    """Ids of the tokens that can be a word of their own: letters and digits, no word piece."""
    found = [i for i, text in _tokens(tokenizer) if all(unicodedata.category(c)[0] in "LN" for c in text)]
    return torch.tensor(found, dtype=torch.long)


@lru_cache(maxsize=4)
def _characters(tokenizer) -> Tensor:
    """Ids of the tokens that are one Chinese character (or Bopomofo), of which longer words are made."""
    found = [i for i, text in _tokens(tokenizer) if len(text) == 1 and unicodedata.category(text) == "Lo"]
    return torch.tensor(found, dtype=torch.long)


def _tokens(tokenizer) -> list[tuple[int, str]]:
    special = set(tokenizer.all_special_ids)
    decoded = ((i, tokenizer.decode([i]).strip()) for i in range(len(tokenizer)) if i not in special)
    return [(i, text) for i, text in decoded if text]


def _logits(
    forward: Forward, rows: Sequence[Sequence[int]], place: int, device
) -> Iterator[tuple[int, Tensor]]:
    """(first row, logits (B, V)) at one position of rows of one length, in batches of bounded size."""
    size = max(1, min(BATCH_TOKENS // len(rows[0]), BATCH_BLANKS))
    for at in range(0, len(rows), size):
        ids = torch.tensor(rows[at : at + size], device=device)
        numbers = torch.arange(len(ids), device=device)
        logits = forward(ids, torch.ones_like(ids), numbers, torch.full_like(numbers, place)).float()
        check_numbers(logits)
        yield at, logits
