"""Metrics of written texts: ROUGE, chrF and BLEU against the wanted ones, with intervals and simple rules.

ROUGE is that of the library rouge_score (C.-Y. Lin 2004) with tokens that Chinese has: every Han character is
one, so that Chinese is compared by characters; Latin letters and digits are words as in rouge_score's own
tokenizer, so that English gets the very same figures. chrF and BLEU are sacrebleu's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from statistics import fmean, median
from typing import Any

import numpy

from finetune.data.punctuation import HAN
from finetune.data.text_pairs import TextPair
from finetune.evaluation.metrics import INTERVAL, mean_difference, resampled, share
from finetune.models.streaming import Reply

ROUGE = ("rouge1", "rouge2", "rougeL")
BY_ROW = (*ROUGE, "chrf_rows")  # means of a figure that every row has
# A single character of a script without spaces; a word of Latin letters and digits, as rouge_score has it; a
# word of another script.
_SINGLE = rf"[{HAN}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
_TOKEN = re.compile(rf"{_SINGLE}|[a-z0-9]+|(?:(?!{_SINGLE})[^\W_\u0000-\u024f])+")
_HAN = re.compile(f"[{HAN}]")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # Ａ is A, １ is 1
_SENTENCE = re.compile(r".*?(?:[。！？!?；]+[」』”’）)]*|\.(?=\s)|\n|$)", re.DOTALL)
SAMPLES = 5  # rows that a report shows


def tokens(text: str) -> list[str]:
    """Return the tokens that ROUGE counts: Han characters, and words of small letters and digits."""
    return _TOKEN.findall(text.translate(_FULL_WIDTH).lower())


class _Tokenizer:
    """`tokens` as rouge_score takes them."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return tokens(text)


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_Tokenizer())


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def row_figures(target: str, output: str) -> dict[str, float]:
    """Return the figures of one row, each 0 to 1: F1 of ROUGE-1, -2 and -L, and chrF."""
    scores = _rouge_scorer().score(target, output)
    figures = {name: float(scores[name].fmeasure) for name in ROUGE}
    return figures | {"chrf_rows": _chrf().sentence_score(output, [target]).score / 100}


def summary_figures(targets: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a set of rows.

    `rouge1`, `rouge2`, `rougeL` and `chrf_rows` are means over the rows, each with its 95 % interval by a
    bootstrap of the rows (`…_interval_95`); `chrf` and `bleu` are of the whole set, as sacrebleu has them, in
    hundredths; `exact` is the share of outputs that are the target but for white space. `by_row` has the
    figures of each row.

    Args:
        targets: the wanted texts, at least one.
        outputs: what was written, in the same order.
    """
    from sacrebleu.metrics import BLEU

    rows = [row_figures(*pair) for pair in zip(targets, outputs, strict=True)]
    figures: dict[str, Any] = {"n": len(rows)}
    rng = numpy.random.default_rng(0)
    for name in BY_ROW:
        values = [row[name] for row in rows]
        figures[name] = fmean(values)
        figures[f"{name}_interval_95"] = numpy.percentile(resampled(rng, values), INTERVAL).tolist()
    cut = bleu_tokenizer(targets)
    figures["chrf"] = _chrf().corpus_score(list(outputs), [list(targets)]).score / 100
    figures["bleu"] = BLEU(tokenize=cut).corpus_score(list(outputs), [list(targets)]).score / 100
    figures["bleu_tokenize"] = cut
    same = sum(a.split() == b.split() for a, b in zip(targets, outputs, strict=True))
    figures["exact"] = share(same, len(rows))
    return figures | {"by_row": rows}


def bleu_tokenizer(targets: Sequence[str]) -> str:
    """Return the name of sacrebleu's tokenizer for BLEU: `zh` where most tokens are Han, else `13a`."""
    whole = [token for text in targets for token in tokens(text)]
    return "zh" if sum(bool(_HAN.fullmatch(token)) for token in whole) > len(whole) / 2 else "13a"


def compare(figures: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures − others of the means over rows, with 95 % intervals by a paired bootstrap of the rows.

    Args:
        figures, others: as `summary_figures` returns them, of the same rows.
    """
    differences: dict[str, Any] = {}
    for name in BY_ROW:
        pairs = zip(figures["by_row"], others["by_row"], strict=True)
        differences[name] = mean_difference([a[name] - b[name] for a, b in pairs])
    return differences


def compute_metrics(
    sources: Sequence[str],
    targets: Sequence[str],
    outputs: Sequence[str],
    before: Sequence[str] | None = None,
    typical_length: float = 0,
) -> dict[str, Any]:
    """Compute the metrics of written texts, as values of JSON.

    Args:
        sources: what the texts were written from.
        targets, outputs: see `summary_figures`.
        before: what the model wrote before it was trained, where that is known.
        typical_length: characters of a target, for the rule that copies the beginning; 0 takes these
            targets'.

    Returns:
        the figures of `summary_figures`; `untuned`, those of the model before, and `difference` to it;
        `baselines`: of the beginning of the source (`lead`) and the whole of it (`copy`), each with
        `difference`, the model − it; `empty`, outputs without a character; `by_row` is left out; `samples`.
    """
    figures = summary_figures(targets, outputs)
    metrics = {name: value for name, value in figures.items() if name != "by_row"}
    metrics["empty"] = sum(not text.strip() for text in outputs)
    if before is not None:
        untuned = summary_figures(targets, before)
        metrics["untuned"] = {name: value for name, value in untuned.items() if name != "by_row"}
        metrics["difference"] = compare(figures, untuned)
    length = typical_length or median(map(len, targets))
    rules = {"lead": [lead(source, length) for source in sources], "copy": list(sources)}
    metrics["baselines"] = {}
    for name, texts in rules.items():
        rule = summary_figures(targets, texts)
        short = {key: value for key, value in rule.items() if key != "by_row"}
        metrics["baselines"][name] = short | {"difference": compare(figures, rule)}
    metrics["samples"] = samples(sources, targets, outputs, before)
    return metrics


def lead(source: str, length: float) -> str:
    """Return the first sentences of a text: so many that they have `length` characters, at least one."""
    text = ""
    for sentence in _SENTENCE.findall(source):
        text += sentence
        if len(text.strip()) >= length:
            break
    return text.strip()


def samples(
    sources: Sequence[str],
    targets: Sequence[str],
    outputs: Sequence[str],
    before: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the first rows as a report shows them, see reports/row_report.py."""
    chosen = []
    for at in range(min(SAMPLES, len(sources))):
        lines = [("輸入", sources[at]), ("正解", targets[at])]
        if before is not None:
            lines.append(("微調前", before[at]))
        lines.append(("微調後" if before is not None else "模型", outputs[at]))
        chosen.append(
            {
                "title": f"第 {at + 1} 例",
                "lines": [
                    {"label": label, "pieces": [[text or "（空白）", "", ""]]} for label, text in lines
                ],
            }
        )
    return chosen


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that are one number for the whole set, for trackers and all_results.json."""
    names = ("n", *ROUGE, "chrf", "chrf_rows", "bleu", "empty")
    numbers = {name: metrics[name] for name in names if name in metrics}
    numbers["exact"] = metrics["exact"]["accuracy"]
    if untuned := metrics.get("untuned"):
        numbers |= {f"untuned_{name}": untuned[name] for name in (*ROUGE, "chrf", "bleu")}
    return numbers


def overlap_records(
    rows: Sequence[TextPair], outputs: Sequence[Reply], before: Sequence[Reply] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of predictions.jsonl: source, wanted text, output, its figures, and the other output."""
    for at, row in enumerate(rows):
        record = {
            "id": row.id, "input": row.source, "target": row.target, "response": str(outputs[at]),
            "truncated": outputs[at].truncated,
        }  # fmt: skip
        record |= {name: round(value, 6) for name, value in row_figures(row.target, outputs[at]).items()}
        yield record | ({"untuned_response": str(before[at])} if before else {})
