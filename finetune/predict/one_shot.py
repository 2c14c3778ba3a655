"""Predictions for --prompt on the screen, by kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.inference_args import InferenceArgs, required
from finetune.predict.abilities import ability
from finetune.predict.predictor import Predictor
from finetune.predict.records import answer_record, reply_record
from finetune.runtime import console

if TYPE_CHECKING:  # a single prompt starts without what other kinds of models need
    from finetune.predict.generative import GenerativePredictor


def show_prompt(flags: InferenceArgs, predictor: Predictor) -> None:
    """Print the prediction for --prompt, or the answer to --question from --context."""
    ability(predictor.kind, "show_prompt")(flags, predictor)  # `check_kind` refuses --prompt for the others


def show_reply(flags: InferenceArgs, predictor: GenerativePredictor) -> None:
    """Print the reply of a causal model to --prompt as it is generated, and whether it was cut short."""
    decoding = required(flags.decoding)
    prompt = predictor.with_system(required(flags.prompt), flags.system_prompt)
    for remark in sorted(predictor.remarks(prompt)):
        console.log(remark)
    ids = predictor.encode(prompt)
    if flags.json:
        reply = predictor.generate([ids], decoding)[0]
        console.print_result(console.as_json(reply_record(required(flags.prompt), reply)))
        return
    prompt_title, reply_title = ("問題", "回答") if predictor.has_chat_template else ("開頭", "續寫")
    console.print_result(f"{prompt_title}: {flags.prompt}\n\n{reply_title}: ", end="")
    stream = predictor.stream(ids, decoding)
    for piece in stream:
        console.print_result(piece, end="")
    console.print_result()
    if stream.truncated:
        console.log(predictor.truncation_note(ids, decoding, "--max_new_tokens", "要更長就加大它"))


def show_answer(flags: InferenceArgs, predictor: Predictor) -> None:
    """Print the answer to --question with --options."""
    from finetune.predict.repl import print_ranking

    question, options = required(flags.question), flags.choices
    predictor.warn(question, *options.values())
    if flags.json:
        asked = question, options, flags.scoring, flags.orders, flags.answer_format
        console.print_result(console.as_json(answer_record(predictor, *asked)))
        return
    ranked = predictor.rank(question, options, len(options), flags.scoring, flags.orders)
    console.print_result(f"問題: {question}\n\n預測結果（按可能性排序）:")
    print_ranking(ranked)
