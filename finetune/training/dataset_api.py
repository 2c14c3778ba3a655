"""Questions handed to code of one's own: as plain dicts, or as tensors for another training loop."""

from __future__ import annotations

from finetune.data.question import as_dict


def generate_qa_benchmark(
    random_seed: int = 100,
    field: str = "engineering_math",
    dataset: str = "test",
    source: str = "ikala/tmmluplus",
) -> list[dict]:
    """Questions of one subject, as dicts with id, question, options (letter → text) and answer (letter; None
    where no question of the split has one).

    Args:
        random_seed: how many questions (its name is the predecessor's); fewer when the subject has fewer.
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


def get_dataset(
    tokenizer,
    num_samples=0,
    max_length=512,
    test_ratio=0.05,
    val_ratio=0.25,
    seed=42,
    source="ikala/tmmluplus",
):
    """The questions as tensors for a loop of one's own: the answer's letter is hidden, and the only label.

    Args:
        num_samples: at most so many training questions; 0 takes all.

    Returns:
        train and validation TensorDataset (input_ids, attention_mask, labels; -100 where nothing is asked),
        each row `max_length` long, and the held-back questions as dicts.
    """
    import torch

    from finetune.objectives.exam import ExamObjective

    ratio = (1 - test_ratio - val_ratio, val_ratio, test_ratio)
    from finetune.data.exam import read_exam
    from finetune.data.splits import sample_rows, split_exam
    from finetune.prompts.exam import ExamPrompts

    exam = read_exam(source)
    exam.need_answers(source)
    pools = split_exam(exam, ratio, "fit", seed)
    prompts = ExamPrompts(tokenizer, max_length)

    def tensors(questions):
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
        tensors(sample_rows(pools.fit, num_samples, seed)),
        tensors(pools.validation),
        [as_dict(question) for question in pools.held_out],
    )
