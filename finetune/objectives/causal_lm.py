"""Objectives of a causal language model: continued pre-training on texts, fine-tuning on replies.

Both make examples whose targets are next tokens, each counting once.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from finetune.data.cleaning import Text
from finetune.data.instructions import Instruction
from finetune.data.question import Question
from finetune.data.question_store import pick
from finetune.objectives.batching import Example, ExampleIndex
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat, Passage
from finetune.prompts.exam import Prompt, PromptTooLongError
from finetune.prompts.option_order import shuffled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def next_tokens(
    ids: Sequence[int], wanted: Sequence[int], row: str, documents: Sequence[int] = ()
) -> Example:
    """Return the example whose targets are the tokens at `wanted`, each predicted one position before."""
    return Example(
        tuple(ids), tuple(at - 1 for at in wanted), tuple(ids[at] for at in wanted), row=row, by_token=True,
        documents=tuple(documents),
    )  # fmt: skip


class CausalLMObjective:
    """Next-token prediction of texts, several to a row; no document attends to another.

    Each ends with EOS, so that the model learns to end. A text longer than `max_length` tokens is cut into
    pieces of that length.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows to train or validate on.
        max_length: longest row, in tokens.
        packed: False gives every piece a row of its own.
    """

    name = "cpt"
    truncated = 0
    rejected_by_template: Sequence[str] = ()
    remarks: Mapping[str, int] = {}
    baseline_loss = None

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Text], max_length: int, packed: bool = True
    ):
        self.rows, self.too_long, self.packed = list(rows), list[str](), packed
        self.pieces: list[array] = []
        self.characters = sum(len(row.text) for row in rows)
        # as the tokenizer opens a text of its own (BOS), but closed with EOS alone
        bos = [tokenizer.bos_token_id]
        self.start = bos if tokenizer("x")["input_ids"][:1] == bos else []
        for row in rows:
            plain = tokenizer(row.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = [*self.start, *plain, tokenizer.eos_token_id]
            for at in range(0, len(ids), max_length):
                piece = array("l", ids[at : at + max_length])
                if len(piece) > 1:  # a lone token has none before it to be predicted from
                    self.pieces.append(piece)
        sizes = [len(piece) for piece in self.pieces]
        self.packs = pack_documents(sizes, max_length) if packed else [[i] for i in range(len(sizes))]
        self.lengths = [sum(len(self.pieces[i]) for i in row) for row in self.packs]

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """Return the packed rows of an epoch: always the same ones."""
        return [("text", row) for row in range(len(self.packs))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one packed row."""
        ids: list[int] = []
        documents: list[int] = []
        wanted: list[int] = []
        for number, piece in enumerate((self.pieces[i] for i in self.packs[index]), 1):
            wanted += range(len(ids) + 1, len(ids) + len(piece))
            documents += [number] * len(piece)
            ids += piece
        return next_tokens(ids, wanted, f"pack{index}", documents if self.packed else ())


class InstructionObjective:
    """Next-token prediction of replies: the loss is on what the assistant says, its end included.

    An instruction that is too long loses the tail of its last reply and the replies after it, but never all
    of them; a question loses the middle of its stem. What does not fit even so goes to `too_long`.

    Args:
        prompts: writes conversations and questions as token ids.
        rows: instructions, or questions that are answered with a letter, options in a new order each epoch.
        on_prompt: the loss is on the prompt too; not on that of a row that has replies it must not learn.
        seed: fixes the orders. The same (seed, epoch, row) gives the same example.

    Attributes:
        rejected_by_template: id and error of each row that the chat template does not accept.
        remarks: how many rows were written otherwise than one may expect, by what was done.
    """

    name = "sft"
    packed = False
    baseline_loss = None

    def __init__(
        self,
        prompts: CausalExamPrompts,
        rows: Sequence[Instruction | Question],
        seed: int,
        on_prompt: bool = False,
    ):
        self.prompts, self.seed, self.on_prompt = prompts, seed, on_prompt
        self.chat: Chat = prompts.chat
        self.lengths = array("I")
        self.too_long: list[str] = []
        self.rejected_by_template: list[str] = []
        self.truncated = 0
        self.remarks: Counter[str] = Counter()
        # for each example its row and (token ids, positions, targets); None for a question, which is written
        # anew for each order
        self._row_of = array("I")
        self._written: list[tuple[array, array, array] | None] = []
        kept = array("I")
        for index, row in enumerate(rows):
            try:
                self._add(row, len(kept))
                kept.append(index)
            except PromptTooLongError:
                self.too_long.append(row.id)
            except ValueError as error:
                self.rejected_by_template.append(f"{row.id}：{error}")
        self.rows = pick(rows, kept)

    def _add(self, row: Instruction | Question, number: int) -> None:
        """Add the examples of a row, the `number`th that is kept."""
        if isinstance(row, Question):
            prompt = self._mcq_prompt(row, range(len(row.options)))
            self.truncated += prompt.cut > 0
            self.lengths.append(len(prompt.ids) + 1 + len(self.chat.end_ids))
            self._row_of.append(number)
            self._written.append(None)
            return
        passages = self.chat.conversation(row.messages)
        limit = self.prompts.max_length
        fitting = [passage for passage in passages if passage.reply_spans[0].start < limit]
        if not fitting:
            raise PromptTooLongError(f"提示有 {passages[0].reply_spans[0].start} 個 token，上限 {limit}")
        cut = any(len(passage.ids) > limit for passage in fitting)
        self.truncated += len(fitting) < len(passages) or cut
        for passage in fitting:
            self.lengths.append(min(len(passage.ids), limit))
            self._row_of.append(number)
            self._written.append(self._cut(passage, limit, self.on_prompt and not row.untaught))
        self._remark(row, len(passages))

    def _cut(self, passage: Passage, limit: int, on_prompt: bool) -> tuple[array, array, array]:
        """Return the token ids of a passage within `limit`, positions and targets."""
        ids = passage.ids[:limit]
        wanted = {at - 1: token for at, token in enumerate(ids) if at} if on_prompt else {}
        for span in passage.reply_spans:
            wanted.update((at - 1, passage.ids[at]) for at in span if at < limit)
            if span.stop <= limit:
                wanted[span.stop - 2] = self.chat.end
        return array("l", ids), array("l", wanted), array("l", wanted.values())

    def _remark(self, row: Instruction, passages: int) -> None:
        self.remarks.update(self.chat.remarks(row.messages))
        if passages > 1:
            self.remarks[
                "接上後文時，前面的回答會被樣板（或 tokenizer）改寫：拆成多個樣本訓練，前文都與作答時一樣"
            ] += 1
        if self.on_prompt and row.untaught:
            self.remarks["有不訓練的回答：只訓練其他的回答，提示不算損失（--train_on_prompt）"] += 1

    def epoch(self, epoch: int) -> ExampleIndex:
        """Return every example once."""
        return ExampleIndex(("reply", range(len(self.lengths))))

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """Return one example. A constant `epoch` gives the same order of options each time."""
        row = self.rows[self._row_of[index]]
        if written := self._written[index]:
            ids, positions, targets = written
            return Example(tuple(ids), tuple(positions), tuple(targets), row=row.id, by_token=True)
        question_ids, reply = self._question(row, epoch)
        wanted = range(1, len(question_ids)) if self.on_prompt else reply
        return next_tokens(question_ids, wanted, row.id)

    def _question(self, question: Question, epoch: int) -> tuple[list[int], range]:
        """Return the token ids of a question with its answer, and the span of the answer."""
        rng = random.Random(f"reply:{self.seed}:{epoch}:{question.id}")
        order = shuffled(question.options, rng)
        prompt = self._mcq_prompt(question, order)
        letter = self.prompts.verbalizer_ids(len(order))[order.index(question.answer)]
        ids = [*prompt.ids, letter, *self.chat.end_ids]
        return ids, range(len(prompt.ids), len(ids))

    def _mcq_prompt(self, question: Question, order: Sequence[int]) -> Prompt:
        """Return the prompt of a question with room left for its letter and the end."""
        return self.prompts.mcq_prompt(question, order, spare=1 + len(self.chat.end_ids))


def pack_documents(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Pack documents into rows by best-fit decreasing (arXiv:2404.10830, section 3.2), uncut.

    Args:
        lengths: lengths of the documents in tokens, each at most `size`.
        size: length of a row, in tokens.

    Returns:
        indices of the documents of each row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[index], -1))  # the fullest row that still has room
        if place == len(free):
            rows.append([])
            room, row = size, len(rows) - 1
        else:
            room, row = free.pop(place)
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return rows
