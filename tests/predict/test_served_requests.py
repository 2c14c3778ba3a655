"""Requests to servers and the reading of their answers, form by form."""

from __future__ import annotations

import math

import pytest

from finetune.models.decoding import Decoding
from finetune.predict.served_requests import (
    Asked,
    continuation_scores,
    echoed_tail,
    letter_scores,
    letter_texts,
    next_tokens,
    piece_of,
    prompt_body,
    read_reply_of,
    unlisted_bound,
    with_decoding,
)


def test_log_probabilities_are_read_in_both_forms():
    wanted = [("A", -0.5), (" B", -1.0)]
    lists = {"tokens": ["A"], "token_logprobs": [-0.5], "top_logprobs": [{" B": -1.0, "A": -0.5}]}
    rows = [{"token": "A", "logprob": -0.5}, {"token": "\u0120B", "logprob": -1.0}]
    objects = {"content": [{"token": "A", "logprob": -0.5, "top_logprobs": rows}]}
    assert next_tokens({"logprobs": lists}) == next_tokens({"logprobs": objects}) == wanted


@pytest.mark.parametrize(
    "logprobs",
    [
        None, [], {}, {"content": None}, {"content": []}, {"content": [None]}, {"content": [{}]},
        {"top_logprobs": []}, {"top_logprobs": [None]},
        {"top_logprobs": [{"A": None, "B": "x", "C": math.nan}]},
    ],
)  # fmt: skip
def test_what_is_no_log_probability_is_none(logprobs):
    assert next_tokens({"logprobs": logprobs}) is None
    assert echoed_tail({"logprobs": logprobs}, "A", 0) is None


def test_a_letter_is_its_own_token_and_else_all_that_look_like_it():
    listed = [(" A", -1.0), ("A", -2.0), ("B", -3.0), ("\tB", -4.0)]
    assert letter_scores(listed, [" A", " B"]) == [-1.0, None]
    assert letter_scores(listed, ["A", "B"]) == [-2.0, -3.0]
    spaced = [("\nA", math.log(0.1)), (" A", math.log(0.2))]
    assert letter_scores(spaced, ["A", "B"]) == [pytest.approx(math.log(0.3)), None]
    assert letter_scores([("天", -1.0)], ["A", "B"]) == [None, None]
    assert unlisted_bound([("x", math.log(0.9)), ("y", math.log(0.05))]) == pytest.approx(math.log(0.05))
    assert unlisted_bound([("x", math.log(0.6)), ("y", math.log(0.35))]) == pytest.approx(math.log(0.05))


def test_text_before_the_letter_goes_into_the_prompt_but_for_white_space():
    assert letter_texts([" A", " B"]) == ("", [" A", " B"])
    assert letter_texts(["\\box{A}", "\\box{B}"]) == ("\\box{", ["A", "B"])
    assert letter_texts(["答案： A", "答案： B"]) == ("答案：", [" A", " B"])


def echo(tokens: list[str], values: list, prompt_tokens: int | None = None) -> dict:
    usage = {} if prompt_tokens is None else {"prompt_tokens": prompt_tokens}
    return {"logprobs": {"tokens": tokens, "token_logprobs": values}, "usage": usage}


def test_an_echo_is_read_with_and_without_a_generated_token():
    tokens, values = ["Q", ":", " A", " A"], [None, -1.0, -2.0, -3.0]
    assert echoed_tail(echo(tokens, values, 3), " A", 0) == [(":", -1.0), (" A", -2.0)]
    assert echoed_tail(echo(tokens, values), " A", 1) == [(":", -1.0), (" A", -2.0)]
    assert echoed_tail(echo(tokens[:3], values[:3]), " A", 0) == [(":", -1.0), (" A", -2.0)]
    assert echoed_tail(echo([*tokens[:3], "x"], values), " A", 0) == [(":", -1.0), (" A", -2.0)]
    for ignored in (echo(["x"], [-1.0], 3), echo(["x"], [-1.0]), echo(tokens[:3], [None] * 3, 3)):
        assert echoed_tail(ignored, " A", 0) is None


def test_a_continuation_is_found_from_the_end_past_tokens_that_are_no_text():
    tail = [("\ufffd", -9.0), ("\ufffd", -8.0), (" ", -0.5), ("A", -0.25)]
    assert continuation_scores([tail, [*tail[:2], (" B", -1.5)]], [" A", " B"]) == [-0.75, -1.5]
    joined = [("答", -1.0), (":A", -2.0)], [("答", -1.0), (":", -0.5), ("B", -0.25)]
    assert continuation_scores(joined, ["A", "B"]) == [-2.0, -0.75]  # both begin at the colon
    assert continuation_scores([[("x", -1.0)], [("B", -1.0)]], ["A", "B"]) is None
    assert continuation_scores([[], [("B", -1.0)]], ["A", "B"]) is None


def test_replies_are_read_without_thoughts_and_with_how_they_ended():
    message = {"content": " 好 ", "reasoning": "想"}
    assert read_reply_of({"message": message, "finish_reason": "stop"}) == ("好", False, False)
    assert read_reply_of({"message": {"content": None}, "finish_reason": "length"}) == ("", True, False)
    assert read_reply_of({"message": {"refusal": "不行"}}) == ("不行", False, True)
    assert read_reply_of({"text": " B<|im_end|>x", "finish_reason": "stop"}) == (" B", False, False)
    for odd in ({}, {"message": None}, {"message": []}, {"text": None}):
        assert read_reply_of(odd)[0] == ""
    assert piece_of({"delta": {"content": " 好"}}) == " 好" and piece_of({"delta": None}) == ""
    assert piece_of({"delta": {"reasoning_content": "想"}}) == "" and piece_of({"text": "x"}) == "x"


def test_greedy_requests_hold_no_sampling_and_template_arguments_only_where_given():
    asked = with_decoding(prompt_body("天", {"x": 1}), Decoding(max_new_tokens=3), {"top_k"})
    assert asked == Asked("/completions", {"prompt": "天", "max_tokens": 3, "temperature": 0, "top_k": 50})
    chat = prompt_body([{"role": "user", "content": "天"}], {"enable_thinking": False})
    assert chat.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in prompt_body([], {}).body
