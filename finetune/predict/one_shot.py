"""Predictions for --prompt on the screen, by kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.inference_args import InferenceArgs, required
from finetune.predict.abilities import ability
from finetune.predict.predictor import Predictor
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
        record = {"prompt": flags.prompt, "response": reply, "truncated": reply.truncated}
        console.print_result(console.as_json(record))
        return
    prompt_title, reply_title = ("問題", "回答") if predictor.has_chat_template else ("開頭", "續寫")
    console.print_result(f"{prompt_title}: {flags.prompt}\n\n{reply_title}: ", end="")
    stream = predictor.stream(ids, decoding)
    for piece in stream:
        console.print_result(piece, end="")
    console.print_result()
    if stream.truncated:
        console.log(predictor.truncation_note(ids, decoding, "--max_new_tokens", "要更長就加大它"))
