"""What cleaning did to texts, on the screen: counts, examples, JSON."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher
from statistics import median

from finetune.data.bad_rows import abridged
from finetune.data.cleaning import Cleaning
from finetune.data.contamination import NEAR
from finetune.data.corpus import Corpus, read_corpus
from finetune.runtime import console
from finetune.runtime.console import log

DONE = {  # in `counts` -> what was done to what
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
    """Prints what was read and what the cleaning did."""
    log(f"語料 {corpus.origin}：{_totals(corpus)}")
    counts = corpus.counts
    done = [what + did.format(counts[key], **counts) for key, (what, did) in DONE.items() if counts.get(key)]
    if done:
        log(f"  清理：{'；'.join(done)}")
    if corpus.skipped:
        log(f"  略過 {len(corpus.skipped)} 列：")
        for problem in abridged(corpus.skipped):
            log(f"    - {problem}")


def _totals(corpus: Corpus) -> str:
    return f"{len(corpus):,} 篇，{sum(corpus.lengths):,} 字"


def as_dict(corpus: Corpus) -> dict:
    """What was found, for --json."""
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


def as_text(corpus: Corpus, width: int = 100) -> str:
    """The same as a page for a person.

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
        what, did = DONE[key]
        lines.append(f"{number}. {what}：{did.format(counts[key], **counts) if counts[key] else '沒有'}")
        for before, after in corpus.examples.get(key, ()):
            was, now = marked(before, after, width - 7)
            lines += [f"   前 {was}", f"   後 {now}"] if after else [f"   丟 {was}"]
    lines.append("")
    if skipped := corpus.skipped:
        lines += [f"讀不了、略過的 {len(skipped)} 列：", *(f"  - {row}" for row in skipped[:20])]
        lines += ["  - …（全部見 --json）"] if len(skipped) > 20 else []
    return "\n".join(lines).rstrip()


def marked(before: str, after: str, width: int) -> tuple[str, str]:
    """Both texts from shortly before their first difference, on one line each of at most `width` columns,
    with 【】 around what differs.
    """
    if not after:
        return _fitted(_visible(before), width), ""
    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    was, now = [], []
    for kind, a, b, c, d in steps:
        pair = before[a:b], after[c:d]
        alike = kind == "replace" and unicodedata.normalize("NFC", pair[0]) == pair[1]
        for line, piece in zip((was, now), pair, strict=True):
            codes = "‹" + " ".join(f"U+{ord(x):04X}" for x in piece) + "›" if alike else ""
            line.append(f"【{_visible(piece)}{codes}】" if kind != "equal" and piece else _visible(piece))
    return _fitted("".join(was), width), _fitted("".join(now), width)


def _fitted(line: str, width: int) -> str:
    columns = 0
    for at, character in enumerate(line):
        columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        columns -= bool(unicodedata.combining(character))
        if columns > width:
            return line[: at - 1] + "…"
    return line


def _visible(text: str) -> str:
    """Line ends and characters that cannot be seen, as signs."""
    return "".join(
        "⏎" if c == "\n" else f"‹U+{ord(c):04X}›" if unicodedata.category(c) in ("Cc", "Cf", "Co") else c
        for c in text
    )


def show(corpus: Corpus, as_json: bool = False) -> None:
    """--inspect: the texts before and after, on stdout."""
    console.print_result(console.as_json(as_dict(corpus)) if as_json else as_text(corpus))


def show_texts_report(source: str, as_json: bool, text_column: str = "") -> int:
    """--inspect of texts, cleaned in the usual way. Returns the exit code, 2 when rows are unusable."""
    corpus = read_corpus(source, Cleaning(), None, "skip", "--inspect", text_column)
    show(corpus, as_json)
    return 2 if corpus.skipped else 0
