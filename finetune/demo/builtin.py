"""A built-in exam that needs no download: facts told as sentences and asked as four-option questions.

It is a data source like any other, and a small model built from scratch; everything else is the ordinary
path. All facts are told; a part of them is also asked in training. The exam asks about facts the model has
only read.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from finetune.data.cleaning import Text
from finetune.data.corpus import Corpus
from finetune.data.exam import Exam
from finetune.data.question import Question, Statement
from finetune.demo.facts import RELATIONS
from finetune.prompts.exam import ELLIPSIS, Template

OPTIONS = 4
SHARES = {"train": 0.5, "validation": 0.1, "test": 0.4}  # of the questions, drawn subject by subject


def exam() -> Exam:
    """The whole exam. It is the same for every seed, as a published one is."""
    questions: dict[str, list[Question]] = {split: [] for split in SHARES}
    told = []
    for relation in RELATIONS:
        answers = sorted({answer for _, answer in relation.pairs})
        rng = random.Random(f"demo:{relation.subject}")
        pairs = list(relation.pairs)
        rng.shuffle(pairs)
        for number, (thing, answer) in enumerate(pairs):
            split = _split_at((number + 0.5) / len(pairs))
            options = [answer, *rng.sample([other for other in answers if other != answer], OPTIONS - 1)]
            rng.shuffle(options)
            row_id = f"{relation.subject}/{split}/{number}"
            stem = relation.asked.format(a=thing)
            questions[split].append(
                Question(stem, tuple(options), options.index(answer), relation.subject, row_id)
            )
            for way, sentence in enumerate(relation.told):
                before, after = sentence.format(a=thing, b="\0").split("\0")
                text, end = before + answer + after, len(before) + len(answer)
                told.append(Statement(text, len(before), end, relation.subject, f"told{way}/{row_id}"))
    return Exam(questions, "內建示範", statements=told)


def corpus() -> Corpus:
    """What the exam tells, as texts alone."""
    texts = [Text(statement.text) for statement in exam().statements]
    return Corpus(texts, "內建示範的敘述", {"read": len(texts)})


def write_labels(path: str | Path, several: bool = False) -> None:
    """Writes what the facts are about as labelled rows: a csv with the columns `text` (日本) and `label`
    (首都).

    Args:
        several: one row for each thing, its label all subjects that have a fact about it (首都|貨幣); else a
            row for each fact.
    """
    subjects: dict[str, list[str]] = {}
    for relation in RELATIONS:
        for thing, _ in relation.pairs:
            subjects.setdefault(thing, []).append(relation.subject)
    rows = [
        (thing, label)
        for thing, labels in subjects.items()
        for label in (["|".join(labels)] if several else labels)
    ]
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


def _split_at(place: float) -> str:
    for split, share in SHARES.items():
        if (place := place - share) <= 0:
            return split
    return split


def base_model(folder: str | Path) -> Path:
    """Writes the demo's untrained base to `demo_base/` below `folder`: a small BERT configuration, and a
    tokenizer whose vocabulary is the words of the exam. Returns its path.
    """
    from transformers import BertConfig, BertTokenizer

    path = Path(folder) / "demo_base"
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = vocabulary_of(exam())
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    # Without dropout, and with weights twice as large as BERT's: a model this small learns facts in two
    # minutes so.
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.04, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    config.save_pretrained(path)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True).save_pretrained(
        path
    )
    return path


def vocabulary_of(source: Exam) -> list[str]:
    """Special tokens, letters and digits, and every character and Latin word of the exam, lower-cased."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    template = Template()
    texts = [template.listed, template.option, template.plain, ELLIPSIS, "，。？！、：；「」《》（）…"]
    texts += [statement.text for statement in source.statements]
    for rows in source.questions.values():
        texts += [text for question in rows for text in (question.stem, *question.options)]
    normalize, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(normalize.normalize_str(text))}
    words |= set("abcdefghijklmnopqrstuvwxyz0123456789") | {"10"}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
