"""Exam questions for other programs: as plain dicts, or as tensors for another training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.question import Question, as_dict

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset
    from transformers import PreTrainedTokenizerBase


def generate_qa_benchmark(
    random_seed: int = 100,
    field: str = "engineering_math",
    dataset: str = "test",
    source: str = "ikala/tmmluplus",
) -> list[dict[str, Any]]:
    """Return questions of one subject as dicts.

    Each has id, question, options (letter → text) and answer (letter; None where no question of the split has
    one).

    Args:
        random_seed: how many questions (the name is that of an earlier version); fewer when the subject has
            fewer.
        field: the subject.
        dataset: the split: train, validation or test.
        source: hub name, folder or file.
    """
    from finetune.data.exam import read_exam
    from finetune.data.splits import sample_rows

    exam = read_exam(source, subjects=field)
    split = exam.split(dataset)
    questions = exam.questions.get(split) or exam.keyless.get(split) or []
    chosen = sample_rows(questions, random_seed, seed=0) if random_seed else []
    return [{**as_dict(question), "id": number} for number, question in enumerate(chosen, 1)]


def get_dataset(  # noqa: PLR0913  a public name
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int = 0,
    max_length: int = 512,
    test_ratio: float = 0.05,
    val_ratio: float = 0.25,
    seed: int = 42,
    source: str = "ikala/tmmluplus",
) -> tuple[TensorDataset, TensorDataset, list[dict[str, Any]]]:
    """Return the questions as tensors for another training loop, each with the answer's letter masked.

    Args:
        num_samples: at most so many training questions; 0 takes all.
        max_length: longest row, in tokens.
        test_ratio: share of the held-out questions.
        val_ratio: share of the validation questions.
        seed: fixes the split and the sample.
        source: hub name, folder or file.

    Returns:
        train and validation TensorDataset (input_ids, attention_mask, labels; -100 everywhere but at the
        masked letter), each row `max_length` long, and the held-out questions as dicts.
    """
    import torch

    from finetune.data.exam import read_exam
    from finetune.data.splits import sample_rows, split_exam
    from finetune.objectives.exam import ExamObjective
    from finetune.prompts.exam import ExamPrompts

    ratio = (1 - test_ratio - val_ratio, val_ratio, test_ratio)
    exam = read_exam(source)
    exam.need_answers(source)
    splits = split_exam(exam, ratio, "fit", seed)
    prompts = ExamPrompts(tokenizer, max_length)

    def tensors(questions: Sequence[Question]) -> TensorDataset:
        objective = ExamObjective("answer", prompts, questions, seed)
        examples = [objective.example(*example, 0) for example in objective.epoch(0)]
        shape = len(examples), max_length
        ids = torch.full(shape, tokenizer.pad_token_id)
        mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
            labels[row, example.positions[0]] = example.candidates[example.targets[0]]
        return torch.utils.data.TensorDataset(ids, mask, labels)

    return (
        tensors(sample_rows(splits.fit, num_samples, seed)),
        tensors(splits.validation),
        [as_dict(question) for question in splits.held_out],
    )
