"""Can a small BERT that begins with random weights be trained to answer reading questions?
Multiple-choice questions about Chinese encyclopedia paragraphs, by the letter (`--objective answer`) and by a
multiple-choice head (`choice`).

    python benchmarks/reading.py --texts drcd_paragraphs.jsonl \\
        --questions reading_mcq_train.csv reading_mcq_val.csv

Every stage goes on from the one before:

1. `--task mlm` on the paragraphs: in rows of at most 36 characters, then of at most 120, then of pieces that
   are followed by some of their clauses again, so that a masked word can be found by looking back;
2. `--objective mlm`, then `choice` and `answer` each on their own, on questions made from the paragraphs with
   nobody's help: an answer-like span of a clause becomes a question word, the other options are other spans
   of the paragraph (Lewis et al. 2019, arXiv:1906.04980, section 2: noisy clozes). First without their
   passages, so that what kind of answer a question asks for is learned; then with them;
3. the same two objectives on the questions themselves; 30 % of them, about other passages, are the exam.

The paragraphs of stages 1 and 2 are those the exam is about, too: texts, without questions or answers. The
tokenizer is that of --tokenizer. `--work DIR` keeps every stage, and a second call goes on after the last.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune.data.segmentation import simplified, word_spans
from finetune.data.tables import read_table  # noqa: E402

HEADER = ("ID", "文章", "問題", "選項1", "選項2", "選項3", "選項4", "正確答案")
QUESTION_WORDS = {
    "time": ("哪一年", "什麼時候", "何時"), "number": ("多少", "幾"), "person": ("誰", "哪一個人", "哪位"),
    "place": ("哪裡", "哪一個地方", "哪個國家", "何處"), "body": ("哪個單位", "什麼組織", "哪一個機構"),
    "thing": ("什麼", "哪一個", "何"),
}  # fmt: skip
KINDS = {  # of the tags of jieba
    "nr": "person", "nrt": "person", "nrfg": "person", "ns": "place", "nt": "body", "nz": "thing",
}  # fmt: skip
UNITS = "世紀|年代?|月|日|[萬億]?(?:美?元|人)?|公里|公尺|%|歲|次|座|個|名"
NUMBER = re.compile(rf"(?:約|第)?\d[\d,.]*(?:{UNITS})")
QUOTED = re.compile(r"(?<=[「《])[^「」《》]{2,12}(?=[」》])")
STOPS = "。，；！？："
DROPPED = 0.12  # of the words of a clause, so that a question does not repeat it
IN_PLACE = 0.6  # of the question words stand where the answer stood; else at the end
WINDOW = (60, 110)  # characters of a passage
MOST = 20  # questions a paragraph
PIECE, PIECES = 80, 24  # characters of a piece that is followed by its clauses, pieces a paragraph

LENGTH = 128  # tokens of a row: those of the made questions reach it, so that every position is trained
MLM = ["--task", "mlm", "--clean", "punctuation,length", "--min_chars", 10, "--masking", "token"]
SHORT_ROWS = [*MLM, "--max_chars", 36, "--max_length", 40, "--train_batch_size", 96, "--learning_rate", 1e-3]
LONG_ROWS = [*MLM, "--max_chars", 120, "--max_length", LENGTH, "--train_batch_size", 32]
LONG_ROWS += ["--learning_rate", 7e-4]
ECHOES = ["--task", "mlm", "--clean", "none", "--min_chars", 10, "--masking", "token", "--mask_rate", 0.2]
ECHOES += ["--max_length", LENGTH, "--train_batch_size", 64, "--learning_rate", 1e-3, "--num_epochs", 3]
MADE = ["--split_ratio", "0.96,0.02,0.02", "--train_batch_size", 32, "--learning_rate", 5e-4]
ALONE = {
    "choice": ["--train_batch_size", 32, "--learning_rate", 5e-4, "--num_epochs", 3],
    "answer": ["--train_batch_size", 64, "--learning_rate", 7e-4, "--num_epochs", 6],
}
REAL = ["--split_ratio", "0.6,0.1,0.3", "--train_batch_size", 32, "--learning_rate", 1e-4]


def answers_in(text: str) -> dict[tuple[int, int], str]:
    """(start, end) of what could be asked for, with its kind; none overlaps another."""
    import jieba.posseg

    found = {match.span(): "thing" for match in QUOTED.finditer(text)}
    for match in NUMBER.finditer(text):
        is_time = match.group().endswith(("年", "年代", "月", "日", "世紀"))
        found[match.span()] = "time" if is_time else "number"
    at = 0
    for word, tag in jieba.posseg.cut(simplified(text)):
        start, at = at, at + len(word)
        if tag in KINDS and len(word) > 1 or tag in ("n", "vn", "l", "i") and len(word) > 2:
            found[start, at] = KINDS.get(tag, "thing")
    kept: dict[tuple[int, int], str] = {}
    for start, end in sorted(found, key=lambda span: span[0] - span[1]):  # the longest first
        if all(end <= a or start >= b for a, b in kept):
            kept[start, end] = found[start, end]
    return kept


def make_question(
    rng: random.Random, text: str, span: tuple[int, int], kind: str
) -> tuple[str, int, int] | None:
    """A question that the span answers, and the clause it was made of; None where that is too short, too
    long, or holds the answer twice."""
    start, end = span
    first = max(text.rfind(stop, 0, start) for stop in STOPS) + 1
    last = min((at for stop in STOPS if (at := text.find(stop, end)) >= 0), default=len(text))
    before, after = noisy(rng, text[first:start]), noisy(rng, text[end:last])
    word = rng.choice(QUESTION_WORDS[kind])
    question = f"{before}{word}{after}?"
    if rng.random() >= IN_PLACE:
        question = f"{before}{after}{rng.choice(('的是', '是'))}{word}?"
    fits = 10 <= last - first <= 45 and len(before) + len(after) >= 5
    return (question, first, last) if fits and text[start:end] not in question else None


def made_questions(paragraphs: list[str], seed: int = 0) -> list[list]:
    """Rows of HEADER."""
    rng, rows = random.Random(seed), []
    for text in paragraphs:
        spans = answers_in(text)
        names = list(dict.fromkeys(text[start:end] for start, end in spans))
        count = 0
        for span in rng.sample(sorted(spans), len(spans)):
            answer, made = text[slice(*span)], make_question(rng, text, span, spans[span])
            if not made or count == MOST:
                continue
            question, first, last = made
            size = rng.randint(*WINDOW)
            begin = max(0, span[0] - rng.randint(20, size - 20))
            passage = text[begin : begin + size]
            others = [
                name
                for name in names
                if name not in answer and answer not in name and name not in text[first:last]
            ]
            seen = [name for name in others if name in passage]
            if begin + size < last or len(seen) < 2 or len(others) < 3:
                continue
            options = rng.sample(seen, min(len(seen), 3))
            options += rng.sample([name for name in others if name not in options], 3 - len(options))
            options.insert(rng.randrange(4), answer)
            rows.append([len(rows) + 1, passage, question, *options, options.index(answer) + 1])
            count += 1
    return rows


def echoes(paragraphs: list[str], seed: int = 0) -> list[str]:
    """Pieces of the paragraphs, each followed by up to three of its clauses again, in another order and
    without some of their words."""
    rng, found = random.Random(seed), []
    for text in paragraphs:
        for _ in range(PIECES):
            size = rng.randint(PIECE // 2, PIECE)
            begin = rng.randrange(max(1, len(text) - size))
            piece = text[begin : begin + size]
            clauses = [clause for clause in re.split(f"[{STOPS}]", piece) if len(clause) >= 5]
            again = rng.sample(clauses, min(len(clauses), rng.randint(1, 3)))
            found.append(f"{piece}。{'，'.join(noisy(rng, clause) for clause in again)}。")
    rng.shuffle(found)
    return found


def noisy(rng: random.Random, text: str) -> str:
    """Without some of its words."""
    return "".join(text[start:end] for start, end in word_spans(text) if rng.random() > DROPPED)


def make_base(folder: Path, tokenizer: str) -> None:
    """Configuration of a BERT of 3 layers, hidden size 192, and its tokenizer."""
    from transformers import AutoTokenizer, BertConfig

    words = AutoTokenizer.from_pretrained(tokenizer)
    words.save_pretrained(folder)
    BertConfig(
        vocab_size=len(words), hidden_size=192, num_hidden_layers=3, num_attention_heads=6,
        intermediate_size=768, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.04, pad_token_id=words.pad_token_id, architectures=["BertForMaskedLM"],
    ).save_pretrained(folder)  # fmt: skip


def write_table(path: Path, header: tuple[str, ...], rows: list[list]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


class Stages:
    """Runs of the training script, one after another, in one folder."""

    def __init__(self, work: Path):
        self.work = work

    def train(self, name: str, base: Path, data: Path, *flags) -> Path:
        """One run; the folder of its model. What is there already is not run again."""
        folder = self.work / name
        if not (folder / "model/all_results.json").exists():
            words = [sys.executable, ROOT / "fine_tuning_llm.py", "--cpu", "--precision", "bf16"]
            words += ["--model", base, "--dataset", data, "--early_stopping_patience", 0, *flags]
            words += ["--save_dir", folder / "checkpoints", "--output_dir", folder / "model", "--resume"]
            began = time.monotonic()
            subprocess.run(list(map(str, words)), check=True, stdout=sys.stderr)
            (folder / "seconds").write_text(f"{time.monotonic() - began:.0f}")
        return folder / "model"

    def run_metrics(self, name: str) -> dict:
        """The metrics of a run, and its seconds."""
        found = json.loads((self.work / name / "model/all_results.json").read_text(encoding="utf-8"))
        return found | {"seconds": int((self.work / name / "seconds").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--questions", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizer", default="bert-base-chinese")
    parser.add_argument("--work", type=Path)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stages = Stages(flags.work or Path(name))
        stages.work.mkdir(parents=True, exist_ok=True)
        base = stages.work / "base"
        make_base(base, flags.tokenizer)
        base = stages.train("1a", base, flags.texts, "--from_scratch", "--num_epochs", 10, *SHORT_ROWS)
        base = stages.train("1b", base, flags.texts, "--num_epochs", 6, *LONG_ROWS)
        texts = [row["text"] for _, row in read_table(flags.texts)]
        echo = write_table(stages.work / "echoes.csv", ("text",), [[text] for text in echoes(texts)])
        base = stages.train("1c", base, echo, *ECHOES)
        rows = made_questions(texts)
        made = write_table(stages.work / "made.csv", HEADER, rows)
        alone = write_table(stages.work / "alone.csv", HEADER, [[row[0], "", *row[2:]] for row in rows])
        rows = [[row[name] for name in HEADER] for path in flags.questions for _, row in read_table(path)]
        real = write_table(stages.work / "questions.csv", HEADER, rows)

        def ways(objective: str, *more) -> list:
            return ["--objective", objective, "--max_length", LENGTH, *more]

        base = stages.train("2", base, made, *ways("mlm", *MADE, "--num_epochs", 3))
        print("| objective | after stage 2 | after stage 3 | 95 % interval | questions | seconds |")
        print("|---|---|---|---|---|---|")
        for objective in ("choice", "answer"):
            runs = [f"2a-{objective}", f"2b-{objective}", f"3-{objective}"]
            model = stages.train(runs[0], base, alone, *ways(objective, *MADE[:2], *ALONE[objective]))
            model = stages.train(runs[1], model, made, *ways(objective, *MADE, "--num_epochs", 1))
            stages.train(runs[2], model, real, *ways(objective, *REAL, "--num_epochs", 5))
            found = stages.run_metrics(runs[2])
            low, high = found["held_back_interval_95"]
            seconds = sum(stages.run_metrics(run)["seconds"] for run in ("1a", "1b", "1c", "2", *runs))
            row = [f"`{objective}`", f"{found['untuned_held_back_accuracy']:.3f}"]
            row += [f"{found['held_back_accuracy']:.3f}", f"{low:.3f}–{high:.3f}"]
            print("|", " | ".join(map(str, [*row, found["held_back_questions"], seconds])), "|", flush=True)


if __name__ == "__main__":
    main()
