"""Inspection of data: which report a source gets."""

from __future__ import annotations

from finetune.cli.inference_args import InferenceArgs, required
from finetune.data import corpus, corpus_report
from finetune.predict.inspect_exam import show_exam
from finetune.predict.inspect_labels import holds_labels, show_labels_report
from finetune.predict.inspect_pairs import holds_pairs, show_pairs_report
from finetune.predict.inspect_spans import holds_spans, show_spans_report
from finetune.predict.inspect_tags import holds_tags, show_tags_report
from finetune.predict.loading import exam_prompts, open_exam


def inspect_data(flags: InferenceArgs) -> int:
    """Print an inspection of --inspect: passages, tagged texts, labelled or plain ones, or questions."""
    source, text, label = required(flags.inspect), flags.text_column, flags.label_column
    if holds_spans(source, text, label):
        return show_spans_report(source, flags.json, text, label)
    if holds_tags(source, label):
        return show_tags_report(source, flags.json, text, label)
    if holds_pairs(source, text, label):
        return show_pairs_report(source, flags.json, text, label)
    if label or holds_labels(source, text):
        return show_labels_report(source, flags.json, text, label)
    if text or corpus.holds_texts(source):
        return corpus_report.show_texts_report(source, flags.json, text)
    exam = open_exam(flags, source, "--inspect", "skip")
    return show_exam(flags, exam, lambda: exam_prompts(flags))
