"""Write cloze questions about the passages of a SQuAD file, to train a reader from random weights on first.

python benchmarks/cloze.py DRCD_dev.json cloze.csv --base my_bert_tokenizer --model my_reader_base
python fine_tuning_llm.py --task span --dataset cloze.csv --model my_reader_base --from_scratch …

A phrase of a sentence is asked for: the words around it, some of them dropped, and a question word in its
place. Only passages of the articles that `--task span` trains on (--split_ratio 0.8,0.1,0.1, seed 42) are
used: nothing of those it is measured on. Sentences of other texts (--texts, a line each), four to eight
together, make more passages. --model writes the configuration of a tiny ModernBERT with the tokenizer of
--base; docs/span.md has figures of a reader that began so.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COLUMNS = ("context", "question", "answer", "answer_start", "title")
NUMBERS = re.compile(r"\d[\d,.]*[年月日%個人公里萬億世紀度種名座]*")
TITLES = re.compile(r"(?<=[「《『])[^」》』]{1,15}(?=[」》』])")
SENTENCE = re.compile(r"[^。！？；]+")
ASKED = {"number": ("多少", "幾", "哪一年", "何時"), "word": ("什麼", "誰", "哪裡", "哪個", "何", "哪一")}
STOP = "，、：（）「」·· 的是在和與"  # an answer is more than these
KEPT = 0.88  # share of the characters of a question that stay


def passages_of(source: str) -> dict[str, str]:
    """Passage -> article, of the articles that are trained on."""
    from finetune.data.answer_spans import read_spans
    from finetune.data.splits import split_rows

    splits = split_rows(read_spans(source), (0.8, 0.1, 0.1), 42)
    held = {row.group for row in (*splits.validation, *splits.held_out)}
    assert not held & {row.group for row in splits.fit}
    return {row.context: row.group for row in splits.fit}


def pseudo_passages(file: str, rng: random.Random) -> dict[str, str]:
    """Sentences of a text file, four to eight together -> a name."""
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    lines = [line if line[-1] in "。！？" else f"{line}。" for line in lines if 14 < len(line) < 120]
    rng.shuffle(lines)
    found, at = {}, 0
    while at < len(lines):
        count = rng.randint(4, 8)
        found["".join(lines[at : at + count])] = f"{Path(file).stem}-{at}"
        at += count
    return found


def questions_of(passage: str, count: int, rng: random.Random) -> Iterator[tuple[str, str, str, int]]:
    """(context, question, answer, its place) of at most `count` phrases of a passage."""
    import jieba

    jieba.setLogLevel(60)
    sentences = [match.span() for match in SENTENCE.finditer(passage) if len(match[0]) > 12]
    for start, end in rng.choices(sentences, k=count) if sentences else ():
        sentence = passage[start:end]
        spans = [(*match.span(), "number") for match in NUMBERS.finditer(sentence)]
        spans += [(*match.span(), "word") for match in TITLES.finditer(sentence)]
        if not spans or rng.random() < 0.5:
            borders = [0]
            for word in jieba.cut(sentence):
                borders.append(borders[-1] + len(word))
            first = rng.randrange(len(borders) - 1)
            last = min(len(borders) - 1, first + rng.choice((1, 1, 2, 2, 3)))
            spans = [(borders[first], borders[last], "word")]
        begin, stop, kind = rng.choice(spans)
        answer = sentence[begin:stop]
        if not answer.strip(STOP) or any(mark in answer for mark in "，、：（）。"):
            continue
        before, after = (re.split("[，：、]", part) for part in (sentence[:begin], sentence[stop:]))
        near = (
            "".join(before[-1:] if rng.random() < 0.6 else before[-2:]),
            "".join(after[: rng.choice((1, 1, 2))]),
        )
        question = near[0] + rng.choice(ASKED[kind]) + near[1]
        if (others := before[:-1] + after[1:]) and rng.random() < 0.4:
            question = f"{rng.choice(others)}，{question}"
        question = "".join(char for char in question if rng.random() < KEPT)
        if len(question) < 6:
            continue
        left, right = max(0, start - rng.randrange(60)), min(len(passage), end + rng.randrange(60))
        yield passage[left:right], f"{question[:60]}？", answer, start + begin - left


def write_base(folder: str, tokenizer: str) -> None:
    """The configuration of a tiny ModernBERT: it knows distances, which BERT has to learn."""
    from transformers import AutoTokenizer, ModernBertConfig

    reader = AutoTokenizer.from_pretrained(tokenizer)
    config = ModernBertConfig(
        vocab_size=len(reader), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=2, max_position_embeddings=512, global_attn_every_n_layers=2, local_attention=32,
        pad_token_id=reader.pad_token_id, cls_token_id=reader.cls_token_id, sep_token_id=reader.sep_token_id,
        bos_token_id=reader.cls_token_id, eos_token_id=reader.sep_token_id, initializer_range=0.09,
        architectures=["ModernBertForMaskedLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    reader.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a file in the layout of SQuAD, such as DRCD's")
    parser.add_argument("output", help="csv of the cloze questions")
    parser.add_argument("--texts", help="a text file, a sentence a line, for more passages")
    parser.add_argument("--each", type=int, default=30, help="questions of a passage (default 30)")
    parser.add_argument("--base", help="model whose tokenizer --model gets: a folder or a name on the hub")
    parser.add_argument("--model", help="folder of the configuration to train from")
    args = parser.parse_args()
    rng = random.Random(11)
    passages = passages_of(args.source) | (pseudo_passages(args.texts, rng) if args.texts else {})
    rows = [
        (*question, article)
        for passage, article in passages.items()
        for question in questions_of(passage, args.each, rng)
    ]
    rng.shuffle(rows)
    with open(args.output, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    print(f"{args.output}: {len(rows):,} questions about {len(passages):,} passages")
    if args.model:
        write_base(args.model, args.base)


if __name__ == "__main__":
    main()
