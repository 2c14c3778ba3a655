"""Report of what cleaning did to texts: counts, examples, JSON."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher
from statistics import median

from finetune.data.bad_rows import summarize_problems
from finetune.data.cleaning import Cleaning
from finetune.data.contamination import NEAR
from finetune.data.corpus import Corpus, read_corpus
from finetune.runtime import console
from finetune.runtime.console import log
from finetune.runtime.text_width import display_width

DONE = {  # key of `counts` -> object and effect of the step
    "urls": ("網址", "刪去 {:,} 個"),
    "numbering": ("段落編號", "刪去 {:,} 個"),
    "punctuation": ("標點、空白與字形", "改了 {:,} 處"),
    "titles": ("同標題的列", "有 {:,} 列併進前面的文章"),
    "too_short": ("太短的文章", "丟掉 {:,} 篇"),
    "cut": ("太長的文章", "有 {:,} 篇，切成 {parts:,} 段"),
    "duplicates": ("重複的文章", "丟掉 {:,} 篇"),
    "near_duplicates": (f"幾乎重複的文章（5-gram 重疊 {NEAR:.0%} 以上）", "丟掉 {:,} 篇"),
}


def describe(corpus: Corpus) -> None:
    """Log what was read and what the cleaning did."""
    log(f"語料 {corpus.origin}：{_totals(corpus)}")
    counts = corpus.counts
    done = [
        title + effect.format(counts[key], **counts)
        for key, (title, effect) in DONE.items()
        if counts.get(key)
    ]
    if done:
        log(f"  清理：{'；'.join(done)}")
    if corpus.skipped:
        log(f"  略過 {len(corpus.skipped)} 列：")
        for problem in summarize_problems(corpus.skipped):
            log(f"    - {problem}")


def _totals(corpus: Corpus) -> str:
    """Return the number of texts and characters."""
    return f"{len(corpus):,} 篇，{sum(corpus.lengths):,} 字"


def as_dict(corpus: Corpus) -> dict:
    """Return the report for --json."""
    return {
        "origin": corpus.origin,
        "texts": len(corpus),
        "characters": sum(corpus.lengths),
        "median_characters": median(corpus.lengths),
        "longest_characters": corpus.lengths[-1],
        "counts": corpus.counts,
        "examples": {
            step: [{"before": before, "after": after} for before, after in pairs]
            for step, pairs in corpus.examples.items()
        },
        "unusable": corpus.skipped,
    }


def format_report(corpus: Corpus, width: int = 100) -> str:
    """Return the report as a page of text.

    Args:
        width: columns of a line of an example; a Chinese character takes two.
    """
    counts, lengths = corpus.counts, corpus.lengths
    lines = [
        f"語料 {corpus.origin}",
        f"  讀到 {counts['read']:,} 篇，{counts['read_characters']:,} 字；清理後 {_totals(corpus)}",
        f"  一篇的長度：中位數 {median(lengths):,g} 字，最短 {lengths[0]:,} 字，最長 {lengths[-1]:,} 字",
        "",
    ]
    if counted := [key for key in DONE if key in counts]:
        lines += ["清理的每一步（【】是刪掉、改掉與換上的字，✂ 是切開的地方）：", ""]
    for number, key in enumerate(counted, 1):
        title, effect = DONE[key]
        lines.append(f"{number}. {title}：{effect.format(counts[key], **counts) if counts[key] else '沒有'}")
        for before, after in corpus.examples.get(key, ()):
            before_line, after_line = marked(before, after, width - 7)
            lines += [f"   前 {before_line}", f"   後 {after_line}"] if after else [f"   丟 {before_line}"]
    lines.append("")
    if skipped := corpus.skipped:
        lines += [f"無法讀取而略過的 {len(skipped)} 列：", *(f"  - {row}" for row in skipped[:20])]
        lines += ["  - …（全部見 --json）"] if len(skipped) > 20 else []
    return "\n".join(lines).rstrip()


def marked(before: str, after: str, width: int) -> tuple[str, str]:
    """Mark the differences of two texts with 【】, each on one line of at most `width` columns.

    Both begin shortly before their first difference.
    """
    if not after:
        return _fitted(_visible(before), width), ""
    changes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    before_pieces: list[str] = []
    after_pieces: list[str] = []
    for kind, a, b, c, d in changes:
        pair = before[a:b], after[c:d]
        is_normalised = kind == "replace" and unicodedata.normalize("NFC", pair[0]) == pair[1]
        for line, piece in zip((before_pieces, after_pieces), pair, strict=True):
            codes = "‹" + " ".join(f"U+{ord(x):04X}" for x in piece) + "›" if is_normalised else ""
            line.append(f"【{_visible(piece)}{codes}】" if kind != "equal" and piece else _visible(piece))
    return _fitted("".join(before_pieces), width), _fitted("".join(after_pieces), width)


def _fitted(line: str, width: int) -> str:
    """Cut a line to `width` columns."""
    columns = 0
    for at, character in enumerate(line):
        columns += display_width(character) - bool(unicodedata.combining(character))
        if columns > width:
            return line[: at - 1] + "…"
    return line


def _visible(text: str) -> str:
    """Return a text with signs for line ends and invisible characters."""
    return "".join(
        "⏎" if c == "\n" else f"‹U+{ord(c):04X}›" if unicodedata.category(c) in ("Cc", "Cf", "Co") else c
        for c in text
    )


def show(corpus: Corpus, as_json: bool = False) -> None:
    """Print the report on stdout, for --inspect."""
    console.print_result(console.as_json(as_dict(corpus)) if as_json else format_report(corpus))


def show_texts_report(source: str, as_json: bool, text_column: str = "") -> int:
    """Print the report of texts, cleaned in the usual way, for --inspect.

    Returns:
        the exit code, 2 when rows are unusable.
    """
    corpus = read_corpus(source, Cleaning(), None, "skip", "--inspect", text_column)
    show(corpus, as_json)
    return 2 if corpus.skipped else 0
