"""What is taught to a causal model: texts to go on from, and replies to what is asked. Both become examples
whose targets are next tokens, each counting once.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence

from finetune.data.cleaning import Text
from finetune.data.instructions import Instruction
from finetune.data.question import Question
from finetune.data.question_store import pick
from finetune.objectives.batching import Example, ExampleIndex
from finetune.prompts.causal_exam import CausalExamPrompts
from finetune.prompts.chat import Chat, Passage
from finetune.prompts.exam import Prompt, PromptTooLongError
from finetune.prompts.option_order import shuffled


def next_tokens(
    ids: Sequence[int], wanted: Sequence[int], row: str, documents: Sequence[int] = ()
) -> Example:
    """The example that asks for the tokens at `wanted`, each at the position before it."""
    return Example(
        tuple(ids), tuple(at - 1 for at in wanted), tuple(ids[at] for at in wanted), row=row, by_token=True,
        documents=tuple(documents),
    )  # fmt: skip


class CausalLMObjective:
    """Texts, several to a row; no document sees another. Each ends with EOS, so that the model learns to end.

    A text longer than `max_length` tokens is cut into pieces of that length.

    Args:
        rows: to be taught.
        max_length: of a row, in tokens.
        packed: False gives every piece a row of its own.
    """

    name = "cpt"
    truncated = 0

    def __init__(self, tokenizer, rows: Sequence[Text], max_length: int, packed: bool = True):
        self.rows, self.too_long, self.packed = list(rows), [], packed
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
                if len(piece) > 1:  # a lone token has none before it to be said from
                    self.pieces.append(piece)
        sizes = [len(piece) for piece in self.pieces]
        self.packs = pack_documents(sizes, max_length) if packed else [[i] for i in range(len(sizes))]
        self.lengths = [sum(len(self.pieces[i]) for i in row) for row in self.packs]

    def epoch(self, epoch: int) -> list[tuple[str, int]]:
        """The packed rows of an epoch: always the same ones."""
        return [("text", row) for row in range(len(self.packs))]

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """One packed row."""
        ids: list[int] = []
        documents: list[int] = []
        wanted: list[int] = []
        for number, piece in enumerate((self.pieces[i] for i in self.packs[index]), 1):
            wanted += range(len(ids) + 1, len(ids) + len(piece))
            documents += [number] * len(piece)
            ids += piece
        return next_tokens(ids, wanted, f"pack{index}", documents if self.packed else ())


class InstructionObjective:
    """Replies: the loss is on what the assistant says, its end included.

    An instruction that is too long loses the tail of its last reply and the replies after it, but never all
    of them; a question loses the middle of its stem. What cannot be taught even so goes to `too_long`.

    Args:
        rows: instructions, or questions that are answered with a letter, options in a new order each epoch.
        on_prompt: the loss is on the prompt too; not on that of a row that has replies it must not learn.
        seed: of the orders. The same (seed, epoch, row) gives the same example.

    Attributes:
        remarks: how many rows were written otherwise than a person may expect, by what was done.
    """

    name = "sft"
    packed = False

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
        self.refused: list[str] = []
        self.truncated = 0
        self.remarks: Counter[str] = Counter()
        # of each example its row and, but for a question, which is written anew for each order,
        # (token ids, positions, targets)
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
                self.refused.append(f"{row.id}：{error}")
        self.rows = pick(rows, kept)

    def _add(self, row: Instruction | Question, number: int) -> None:
        """Writes the examples of a row, the `number`th that is kept."""
        if isinstance(row, Question):
            prompt = self._listed(row, range(len(row.options)))
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
        self.truncated += len(fitting) < len(passages) or any(len(one.ids) > limit for one in fitting)
        for passage in fitting:
            self.lengths.append(min(len(passage.ids), limit))
            self._row_of.append(number)
            self._written.append(self._cut(passage, limit, self.on_prompt and not row.untaught))
        self._remark(row, len(passages))

    def _cut(self, passage: Passage, limit: int, on_prompt: bool) -> tuple[array, array, array]:
        """The passage within `limit`, what it asks for and where."""
        ids = passage.ids[:limit]
        wanted = {at - 1: token for at, token in enumerate(ids) if at} if on_prompt else {}
        for spoken in passage.reply_spans:
            wanted.update((at - 1, passage.ids[at]) for at in spoken if at < limit)
            if spoken.stop <= limit:
                wanted[spoken.stop - 2] = self.chat.end
        return array("l", ids), array("l", wanted), array("l", wanted.values())

    def _remark(self, row: Instruction, passages: int) -> None:
        self.remarks.update(self.chat.remarks(row.messages))
        if passages > 1:
            self.remarks[
                "接上後文時，前面的回答會被樣板（或 tokenizer）改寫：分成幾例教，前文都與作答時一樣"
            ] += 1
        if self.on_prompt and row.untaught:
            self.remarks["有不教的回答：只教其他的回答，提示不教（--train_on_prompt）"] += 1

    def epoch(self, epoch: int) -> ExampleIndex:
        """Every row once."""
        return ExampleIndex(("reply", range(len(self.lengths))))

    def example(self, kind: str, index: int, epoch: int) -> Example:
        """One example. A constant `epoch` gives the same order of options each time, as validation needs."""
        row = self.rows[self._row_of[index]]
        if written := self._written[index]:
            ids, positions, targets = map(tuple, written)
            return Example(ids, positions, targets, row=row.id, by_token=True)
        ids, spoken = self._question(row, epoch)
        return next_tokens(ids, range(1, len(ids)) if self.on_prompt else spoken, row.id)

    def _question(self, question: Question, epoch: int) -> tuple[list[int], range]:
        rng = random.Random(f"reply:{self.seed}:{epoch}:{question.id}")
        order = shuffled(question.options, rng)
        prompt = self._listed(question, order)
        letter = self.prompts.verbalizer_ids(len(order))[order.index(question.answer)]
        ids = [*prompt.ids, letter, *self.chat.end_ids]
        return ids, range(len(prompt.ids), len(ids))

    def _listed(self, question: Question, order: Sequence[int]) -> Prompt:
        """The question with room left for its letter and the end."""
        return self.prompts.mcq_prompt(question, order, spare=1 + len(self.chat.end_ids))


def pack_documents(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which documents share a row: best-fit decreasing (arXiv:2404.10830, section 3.2). No document is cut.

    Args:
        lengths: of the documents, each at most `size`.

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
