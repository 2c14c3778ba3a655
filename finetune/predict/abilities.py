"""Abilities of each kind of model: the predictor, session, file and evaluation that belong to it.

They are named here and imported when they are used, so that a single prompt starts without what other kinds
of models need.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Abilities:
    """Names `module.Name` within `finetune.predict`; "" for what a kind of model does not do.

    Attributes:
        predictor: class of its predictor.
        call: the function of inference.py that uses it.
        verb: what that does, for messages.
        repl: class of its interactive session, made from (predictor, SessionSettings).
        show_prompt: prints the prediction for --prompt, or for --question with --context: (flags, predictor).
        rows: class of the handler of --input, made from (flags, predictor).
        exam: evaluates on --exam: (flags, predictor, world).
    """

    predictor: str
    call: str
    verb: str
    repl: str = ""
    show_prompt: str = ""
    rows: str = ""
    exam: str = ""


ABILITIES = {  # by kind, see models/kinds.py
    "masked": Abilities(
        "predictor.MaskedLMPredictor", "predict_mask", "填 [MASK]",
        repl="session.fill_mask_session", show_prompt="repl.show_words",
    ),
    "causal": Abilities(
        "causal.CausalLMPredictor", "generate_text", "生成文字",
        repl="session.chat_session", show_prompt="one_shot.show_reply",
    ),
    "choice": Abilities(
        "predictor.MultipleChoicePredictor", "qa_inference", "答選擇題", repl="session.quiz_session"
    ),
    "classifier": Abilities(
        "classifier.ClassifierPredictor", "classify", "分類",
        repl="classifier_repl.ClassifierRepl", show_prompt="classifier_repl.show_labels",
        rows="classification_rows.ClassificationRows", exam="label_exam.run_label_exam",
    ),
    "tagger": Abilities(
        "tagger.TaggerPredictor", "tag", "標註",
        repl="tagger_repl.TaggerRepl", show_prompt="tagger_repl.show_entities",
        rows="tagger_rows.TaggerRows", exam="tagger_exam.run_tagger_exam",
    ),
    "extractor": Abilities(
        "extractor.ExtractorPredictor", "answer_span", "在文章裡找答案",
        repl="extractor_repl.ExtractorRepl", show_prompt="extractor_repl.show_answer",
        rows="extractor_rows.ExtractorRows", exam="extractor_exam.run_extractor_exam",
    ),
    "seq2seq": Abilities(
        "seq2seq.Seq2SeqPredictor", "generate_text", "轉換文字",
        repl="seq2seq_repl.Seq2SeqRepl", show_prompt="seq2seq_repl.show_output",
        rows="seq2seq_rows.Seq2SeqRows", exam="seq2seq_exam.run_seq2seq_exam",
    ),
    "encoder": Abilities("embedder.EncoderPredictor", "embed", "得到向量"),
}  # fmt: skip


def ability(kind: str, name: str) -> Any:
    """Return the class or function that a kind of model has for something; None where it has none.

    Args:
        kind: see models/kinds.py.
        name: an attribute of `Abilities`.
    """
    path = getattr(ABILITIES[kind], name)
    if not path:
        return None
    module, _, attribute = path.partition(".")
    return getattr(importlib.import_module(f"finetune.predict.{module}"), attribute)
