"""Answers to --prompt on the screen, by kind of model."""

from __future__ import annotations

from finetune.predict.classifier_repl import show_labels
from finetune.predict.predictor import Predictor
from finetune.predict.repl import show_words
from finetune.runtime import console


def show_prompt(flags, examinee: Predictor) -> None:
    """The answer to --prompt."""
    shows = {"masked": show_words, "causal": show_reply, "classifier": show_labels}
    shows[examinee.kind](flags, examinee)


def show_reply(flags, speaker) -> None:
    """The answer of a causal model to --prompt, on the screen as it is written."""
    ids = speaker.encode(flags.prompt)
    if flags.json:
        reply = speaker.generate([ids], flags.decoding)[0]
        console.print_result(console.as_json({"prompt": flags.prompt, "response": reply}))
        return
    asked, told = ("問題", "回答") if speaker.has_chat_template else ("開頭", "接著寫")
    console.print_result(f"{asked}: {flags.prompt}\n\n{told}: ", end="")
    for piece in speaker.stream(ids, flags.decoding):
        console.print_result(piece, end="")
    console.print_result()
