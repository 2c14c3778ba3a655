"""Built-in exam that needs no download: facts as sentences and as four-option questions.

It is a data source like any other, with a small randomly initialized model; everything else is the ordinary
path. The training data has all facts as sentences, and a part of them also as questions. The test questions
are about facts that the model has only seen as sentences.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

from finetune.data.cleaning import Text
from finetune.data.corpus import Corpus
from finetune.data.exam import Exam
from finetune.data.question import Question, Statement
from finetune.demo.facts import RELATIONS, Relation
from finetune.prompts.exam import ELLIPSIS, Template

OPTIONS = 4
# What the thing and the answer of a fact name, where it is something that one marks in a text.
ENTITIES: dict[str, tuple[str | None, str | None]] = {
    "首都": ("地名", "地名"),
    "貨幣": ("地名", "貨幣"),
    "元素符號": ("元素", None),
    "作者": ("書名", "人名"),
    "朝代": ("人名", "朝代"),
    "動物分類": ("動物", None),
    "器官系統": ("器官", None),
    "臺灣地理": ("地名", "地名"),
}
RATIOS = {"train": 0.5, "validation": 0.1, "test": 0.4}  # shares of the questions, split subject by subject


def exam() -> Exam:
    """Build the whole exam, which is the same for every seed, as a published one is."""
    split_questions: dict[str, list[Question]] = {split: [] for split in RATIOS}
    statements = []
    for relation in RELATIONS:
        answers = sorted({answer for _, answer in relation.pairs})
        rng = random.Random(f"demo:{relation.subject}")
        pairs = list(relation.pairs)
        rng.shuffle(pairs)
        for number, (thing, answer) in enumerate(pairs):
            split = _split_of((number + 0.5) / len(pairs))
            options = [answer, *rng.sample([other for other in answers if other != answer], OPTIONS - 1)]
            rng.shuffle(options)
            row_id = f"{relation.subject}/{split}/{number}"
            stem = relation.question.format(a=thing)
            split_questions[split].append(
                Question(stem, tuple(options), options.index(answer), relation.subject, row_id)
            )
            for version, sentence in enumerate(relation.sentences):
                before, after = sentence.format(a=thing, b="\0").split("\0")
                text, end = before + answer + after, len(before) + len(answer)
                statement_id = f"told{version}/{row_id}"  # hashed in checkpoints: keep it as it is
                statements.append(Statement(text, len(before), end, relation.subject, statement_id))
    questions: dict[str, Sequence[Question]] = dict(split_questions)
    return Exam(questions, "內建示範", statements=statements)


def corpus() -> Corpus:
    """Return the sentences of the exam as a corpus."""
    texts = [Text(statement.text) for statement in exam().statements]
    return Corpus(texts, "內建示範的敘述", {"read": len(texts)})


def write_labels(path: str | Path, several: bool = False) -> None:
    """Write the subjects of the facts as a labelled dataset.

    The file is a csv with the columns `text` (日本) and `label` (首都).

    Args:
        path: the file to write.
        several: one row for each thing, labelled with all subjects that have a fact about it (首都|貨幣);
            else a row for each fact.
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


def write_passages(path: str | Path, count: int = 300) -> None:
    """Write passages of the facts with questions about them, for extractive question answering.

    The file is a csv with the columns `title`, `context` (four facts of different subjects), `question`,
    `answer` (a part of the context) and `answer_start`; two questions to a passage.

    Args:
        path: the file to write.
        count: passages.
    """
    source = exam()
    questions = {question.id: question for rows in source.questions.values() for question in rows}
    told: dict[str, list[Statement]] = {}
    for statement in source.statements:
        told.setdefault(statement.subject, []).append(statement)
    rng = random.Random("passages")
    rows = []
    for number in range(count):
        subjects = rng.sample(sorted(told), 4)
        facts = [rng.choice(told[subject]) for subject in subjects]
        context = "".join(fact.text for fact in facts)
        for at in sorted(rng.sample(range(len(facts)), 2)):
            fact, before = facts[at], sum(len(one.text) for one in facts[:at])
            question = questions[fact.id.partition("/")[2]]
            answer = fact.text[fact.start : fact.end]
            rows.append((f"文章 {number + 1}", context, question.stem, answer, before + fact.start))
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        header = ("title", "context", "question", "answer", "answer_start")
        csv.writer(stream).writerows([header, *rows])


def write_entities(path: str | Path) -> None:
    """Write a sentence of each fact with what it names marked, for tagging.

    The file is jsonl with `text` and `entities`, a list of `start`, `end` (excluded) and `label`; the labels
    are those of `ENTITIES`.

    Args:
        path: the file to write.
    """
    with Path(path).open("w", encoding="utf-8") as stream:
        for relation, thing, answer, sentence in _told_once("entities"):
            text = sentence.format(a=thing, b=answer)
            starts = (sentence.index("{a}"), sentence.format(a=thing, b="{b}").index("{b}"))
            named = zip(starts, (thing, answer), ENTITIES[relation.subject], strict=True)
            entities = [
                {"start": start, "end": start + len(name), "label": label}
                for start, name, label in named
                if label
            ]
            stream.write(json.dumps({"text": text, "entities": entities}, ensure_ascii=False) + "\n")


def write_rewrites(path: str | Path) -> None:
    """Write a sentence of each fact beside a question with its answer, for turning one text into another.

    The file is a csv with the columns `input` (日本把首都設在東京。) and `output`
    (日本的首都是哪一座城市？東京。).

    Args:
        path: the file to write.
    """
    rows = [
        (sentence.format(a=thing, b=answer), f"{relation.question.format(a=thing)}{answer}。")
        for relation, thing, answer, sentence in _told_once("rewrites")
    ]
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("input", "output"), *rows])


def _told_once(seed: str) -> list[tuple[Relation, str, str, str]]:
    """Return all facts (relation, thing, answer, template of one of its sentences) in a random order.

    One sentence each: of two, one could be trained on and the other tested with.
    """
    rng = random.Random(seed)
    facts = [
        (relation, thing, answer, rng.choice(relation.sentences))
        for relation in RELATIONS
        for thing, answer in relation.pairs
    ]
    rng.shuffle(facts)
    return facts


def _split_of(quantile: float) -> str:
    """Return the split that a question belongs to, by its position among those of its subject in (0, 1)."""
    for split, ratio in RATIOS.items():
        if (quantile := quantile - ratio) <= 0:
            return split
    return split


def base_model(folder: str | Path) -> Path:
    """Write the configuration and the tokenizer of the demo's base model to `folder`/demo_base.

    It is a small BERT without weights; the vocabulary of its tokenizer is the words of the exam.

    Returns:
        The path of the folder written.
    """
    from transformers import BertConfig

    path = Path(folder) / "demo_base"
    vocabulary = _write_tokenizer(path)
    # No dropout, and initial weights twice as large as BERT's: with these a model this small learns the facts
    # in two minutes.
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.04, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    config.save_pretrained(path)
    return path


def encoder_decoder(folder: str | Path) -> Path:
    """Write the configuration and the tokenizer of a small BART without weights to `folder`.

    Its tokenizer is that of the demo's base model, as Chinese BARTs have BERT's.

    Returns:
        The path of the folder written.
    """
    from transformers import BartConfig

    path = Path(folder)
    vocabulary = _write_tokenizer(path)
    ends = vocabulary.index("[SEP]")
    BartConfig(
        vocab_size=len(vocabulary), d_model=128, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=512, decoder_ffn_dim=512,
        max_position_embeddings=128, dropout=0.0, init_std=0.04, pad_token_id=vocabulary.index("[PAD]"),
        eos_token_id=ends, bos_token_id=vocabulary.index("[CLS]"), decoder_start_token_id=ends,
        forced_eos_token_id=ends, architectures=["BartForConditionalGeneration"],
    ).save_pretrained(path)  # fmt: skip
    return path


def _write_tokenizer(path: Path) -> list[str]:
    """Write the demo's tokenizer to a folder, which is made, and return its vocabulary."""
    from transformers import BertTokenizer

    path.mkdir(parents=True, exist_ok=True)
    vocabulary = vocabulary_of(exam())
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True).save_pretrained(
        path
    )
    return vocabulary


def vocabulary_of(source: Exam) -> list[str]:
    """List special tokens, letters, digits, and all characters and Latin words of the exam in lower case."""
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
