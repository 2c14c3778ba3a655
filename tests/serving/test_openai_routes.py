"""Paths in OpenAI's shape, by OpenAI's own client: what they answer is what the command line writes."""

from __future__ import annotations

import json
import socket
import threading

import encoder_decoders
import openai
import pytest
import torch
from conftest import make_causal_dir
from live_server import LiveServer

import inference
from finetune.models.decoding import Decoding
from finetune.predict import records
from finetune.predict.loading import load_for_use, predictor_for
from finetune.runtime.errors import UserError
from finetune.serving.field_problems import in_fields

PROMPTS = ["天地玄黃", "日月盈昃，辰宿列張", "User: 題目", "寒來暑往秋收冬藏閏餘成歲", "金"]


@pytest.fixture(scope="module")
def server(qwen_dir):
    with LiveServer(qwen_dir) as server:
        yield server


@pytest.fixture(scope="module")
def plain(llama_dir):
    """A server of a model without a chat template."""
    with LiveServer(llama_dir) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(qwen_dir):
    """The same model, by itself."""
    return predictor_for(*load_for_use(str(qwen_dir), "cpu", "--model_path"), precision="fp32", name="")


def cli(capsys, folder, *argv) -> dict:
    capsys.readouterr()
    assert inference.main(["--model_path", str(folder), "--cpu", "--precision", "fp32", "--json", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def replies_of(alone, text, **options):
    decoding = Decoding(**{"top_k": 0, **options})
    return alone.generate([alone.encode(text)], decoding)[0]


def chat(client, text, **options):
    return client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": text}], **options
    )


def refusal(server, path, body):
    status, answer = server.request(path, body)
    return status, answer["error"]["message"]


# ---- chat --------------------------------------------------------------------------------------------------


def test_a_conversation_gets_the_reply_of_the_command_line(client, qwen_dir, capsys):
    for more in ([], ["--system_prompt", "宇宙洪荒"]):
        wanted = cli(capsys, qwen_dir, "--prompt", PROMPTS[0], "--max_new_tokens", "40", *more)["response"]
        messages = [{"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]}]
        if more:
            messages.insert(0, {"role": "system", "content": more[1]})
        answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=40)
        assert answer.choices[0].message.content == wanted != ""
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert 0 < answer.usage.completion_tokens <= 40 and answer.object == "chat.completion"


def test_replies_asked_for_at_once_are_those_asked_for_one_after_another(client, alone):
    asked = [
        (text, {"max_tokens": 3 + 9 * number, **({"temperature": 1.3, "seed": number} if number % 2 else {})})
        for number, text in enumerate(PROMPTS * 3)
    ]
    wanted = [
        replies_of(
            alone, text, max_new_tokens=options["max_tokens"], do_sample="seed" in options,
            temperature=options.get("temperature", 1.0), seed=options.get("seed"),
        )
        for text, options in asked
    ]  # fmt: skip
    found: list = [None] * len(asked)

    def ask(number):
        text, options = asked[number]
        if number % 3:
            choice = chat(client, text, **options).choices[0]
            found[number] = (choice.message.content, choice.finish_reason == "length")
            return
        parts = [part.choices[0] for part in chat(client, text, stream=True, **options)]
        assert parts[0].delta.role == "assistant"
        pieces = [part.delta.content or "" for part in parts]
        found[number] = ("".join(pieces), parts[-1].finish_reason == "length")

    threads = [threading.Thread(target=ask, args=[number]) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(str(reply), reply.truncated) for reply in wanted]


def test_a_stream_ends_with_its_reason_its_usage_and_done(server, client):
    whole = chat(client, PROMPTS[1], max_tokens=12)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = list(chat(client, PROMPTS[1], max_tokens=12, **options))
    *texts, last = parts
    assert last.choices == [] and last.usage == whole.usage and all(part.usage is None for part in texts)
    assert texts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(part.choices[0].finish_reason is None for part in texts[:-1])
    assert "".join(part.choices[0].delta.content or "" for part in texts) == whole.choices[0].message.content
    body = {"prompt": "天", "max_tokens": 3, "stream": True}
    status, raw = server.request("/v1/completions", body)
    lines = raw.split("\n\n")
    assert status == 200 and lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


def test_a_stop_string_ends_a_reply_and_n_replies_have_seeds_of_their_own(client, alone):
    whole = str(replies_of(alone, PROMPTS[3], max_new_tokens=40))
    stop = whole[4:6]
    answer = chat(client, PROMPTS[3], max_tokens=40, stop=[stop, "不會出現"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"
    several = chat(client, PROMPTS[3], max_tokens=15, n=3, seed=5, temperature=1.4, top_p=0.9)
    one_by_one = [
        replies_of(
            alone, PROMPTS[3], max_new_tokens=15, do_sample=True, seed=5 + i, temperature=1.4, top_p=0.9
        )
        for i in range(3)
    ]
    assert [choice.message.content for choice in several.choices] == [*map(str, one_by_one)]
    assert len(set(map(str, one_by_one))) == 3
    streamed = ["", "", ""]
    for part in chat(client, PROMPTS[3], max_tokens=15, n=3, seed=5, temperature=1.4, top_p=0.9, stream=True):
        streamed[part.choices[0].index] += part.choices[0].delta.content or ""
    assert streamed == [*map(str, one_by_one)]


def test_log_probabilities_of_a_chat_are_those_of_a_plain_pass(client, alone):
    answer = chat(client, PROMPTS[4], max_tokens=6, logprobs=True, top_logprobs=4)
    listed = answer.choices[0].logprobs.content
    ids = alone.encode(PROMPTS[4])
    written = []
    for entry in listed:
        with torch.no_grad():
            logits = alone.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
        values, tokens = logits.log_softmax(-1).topk(4)
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy
        written.append(int(tokens[0]))
        text = alone.tokenizer.decode(written[-1:])
        assert entry.token == text and ("\ufffd" in text or bytes(entry.bytes).decode() == text)
    whole = bytes(byte for entry in listed for byte in entry.bytes).decode(errors="replace")
    assert whole.strip().startswith(answer.choices[0].message.content.rstrip("\ufffd"))


def test_a_conversation_without_a_chat_template_is_sent_to_the_other_path(plain):
    body = {"messages": [{"role": "user", "content": "天"}]}
    status, message = refusal(plain, "/v1/chat/completions", body)
    assert status == 400 and "/v1/completions" in message and "對話樣板" in message


# ---- completions -------------------------------------------------------------------------------------------


def test_a_text_goes_on_as_the_command_line_goes_on(plain, llama_dir, capsys):
    wanted = cli(capsys, llama_dir, "--prompt", "天地<|im_end|>", "--max_new_tokens", "30")["response"]
    with openai.OpenAI(base_url=plain.url + "/v1", api_key="none") as client:
        answer = client.completions.create(model="tiny", prompt="天地<|im_end|>", max_tokens=30)
        assert answer.choices[0].text == wanted and answer.object == "text_completion"
        parts = client.completions.create(model="tiny", prompt="天地<|im_end|>", max_tokens=30, stream=True)
        assert "".join(part.choices[0].text for part in parts) == wanted
        default = cli(capsys, llama_dir, "--prompt", "天")["response"]
        assert client.completions.create(model="tiny", prompt="天").choices[0].text == default


def test_several_prompts_are_answered_in_their_order_as_texts_or_token_ids(server, alone):
    ids = [alone.encode_text(text) for text in PROMPTS]
    wanted = [str(reply) for reply in alone._generator(Decoding(8)).generate(ids)]
    for prompt in (PROMPTS, ids):
        _, answer = server.request("/v1/completions", {"prompt": prompt, "max_tokens": 8, "n": 2})
        assert [choice["index"] for choice in answer["choices"]] == list(range(10))
        assert [choice["text"] for choice in answer["choices"]] == [text for text in wanted for _ in range(2)]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    _, answer = server.request("/v1/completions", {"prompt": ids[1], "max_tokens": 8})
    assert [choice["text"] for choice in answer["choices"]] == [wanted[1]]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echoed_prompt_has_the_log_probabilities_of_a_plain_pass(server, alone, max_tokens):
    text = "User: 題目 A 天地玄黃"
    ids = alone.encode_text(text)
    for prompt in (text, ids):
        body = {"prompt": prompt, "max_tokens": max_tokens, "logprobs": 2, "echo": True, "temperature": 0}
        _, answer = server.request("/v1/completions", body)
        (choice,) = answer["choices"]
        lists = choice["logprobs"]
        assert len({*map(len, lists.values())}) == 1 and len(lists["tokens"]) == len(ids) + max_tokens
        assert lists["token_logprobs"][0] is None is lists["top_logprobs"][0]
        with torch.no_grad():
            log_probs = alone.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(log_probs[at, token]) for at, token in enumerate(ids[1:])]
        assert lists["token_logprobs"][1 : len(ids)] == pytest.approx(wanted, abs=1e-5)
        for at, (own, top) in enumerate(zip(lists["token_logprobs"], lists["top_logprobs"], strict=True)):
            if top:
                assert 2 <= len(top) <= 3 and lists["tokens"][at] in top
            if 0 < at < len(ids):
                assert (own == max(top.values())) == (int(log_probs[at - 1].argmax()) == ids[at])
            if at >= len(ids):  # the token that was written is the likeliest
                assert own == max(top.values())
        shown = "".join(lists["tokens"])
        assert choice["text"].startswith(text) and len(choice["text"]) >= len(text)
        assert [
            shown[at:][: len(token)] for at, token in zip(lists["text_offset"], lists["tokens"], strict=True)
        ] == (lists["tokens"])
        assert answer["usage"]["completion_tokens"] == max_tokens
        assert choice["finish_reason"] == "length"


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"num_beams": 2}, "num_beams"),
        ({"best_of": 2}, "best_of"),
        ({"n": 9}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["天"] * 9}, "stop"),
        ({"top_k": 2.5}, "top_k"),
    ],
)
def test_a_field_that_cannot_be_followed_is_refused_by_its_name(server, body, names):
    for path, asked in (
        ("/v1/completions", {"prompt": "天"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "天"}]}),
    ):
        status, message = refusal(server, path, asked | body)
        assert (status, names in message) == (422, True), message


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [5, 512]}, "512"),
        ("/v1/completions", {"prompt": [5] * 600}, "600 個 token"),
        ("/v1/completions", {"prompt": "天", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": ["天"] * 40, "n": 8}, "320 個回答"),
        ("/v1/completions", {"prompt": "天", "logprobs": 21}, "logprobs"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "天"}]}, "assistant"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "天"}]}, "role"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "content",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "天"}], "top_logprobs": 3},
            "top_logprobs",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_read_is_refused_before_a_stream_begins(server, path, body, says, stream):
    status, message = refusal(server, path, {**body, "stream": stream})
    assert (status, says in message) == (422, True), message


def test_what_changes_nothing_is_accepted(client, alone):
    harmless = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "metadata": {"a": "b"}, "store": False,
        "n": 1, "tools": None, "response_format": {"type": "text"}, "logit_bias": {}, "service_tier": "auto",
        "stop": None, "seed": None,
    }  # fmt: skip
    answer = chat(client, "金", max_tokens=5, **harmless)
    assert answer.choices[0].message.content == str(replies_of(alone, "金", max_new_tokens=5))
    assert answer.choices[0].logprobs is None


@pytest.mark.parametrize("tiny", [1e-30, 1e-38, 1e-45, 1e-320])
def test_values_next_to_0_draw_the_likeliest_token_and_disturb_nobody(server, tiny):
    asked = {"prompt": "天地玄黃", "max_tokens": 5}

    def text(**options) -> str:
        status, answer = server.request("/v1/completions", asked | options)
        assert status == 200, answer
        return answer["choices"][0]["text"]

    assert text(temperature=tiny, seed=1) == text(temperature=0)
    for temperature in (1.0, tiny):
        assert text(temperature=temperature, repetition_penalty=tiny, seed=1)


def test_the_model_that_is_served_is_listed_by_its_name(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" == client.models.retrieve("tiny").id and model.object == "model"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("other/model")


# ---- clients that go away ----------------------------------------------------------------------------------


def tokens_for_who_goes_away(server, path, asked) -> int:
    """Tokens that are written for a client that goes away once it has one."""
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    loop = server.service.decoding_loop
    before = loop.num_tokens
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_until(lambda: loop.num_tokens > before)
    wait_until(lambda: not loop.num_running and not server.service.accepted)
    return loop.num_tokens - before


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_the_running_batch(server, client, stream):
    asked = {"prompt": "天", "max_tokens": 400, "min_tokens": 400, "stream": stream}
    assert tokens_for_who_goes_away(server, "/v1/completions", asked) < 400
    assert chat(client, "天", max_tokens=2).choices


def test_a_question_that_is_answered_in_writing_joins_the_running_batch(server, client, alone):
    asked = {"question": "1 加 1 等於多少？", "options": {"A": "一", "B": "二"}, "scoring": "generate"}
    with pytest.raises(UserError, match="看不出選了哪一個") as wanted:  # it cites the untrained reply
        records.answer_record(alone, *asked.values())
    stream = client.completions.create(model="tiny", prompt="天", max_tokens=400, stream=True,
                                       extra_body={"min_tokens": 400})  # fmt: skip
    assert next(stream)  # it is being written
    loop = server.service.decoding_loop
    before = loop.num_tokens, loop.num_steps
    assert refusal(server, "/v1/answer", asked) == (422, in_fields(wanted.value.problems[0]))
    assert loop.num_running == 1, "the question waited for the long reply"
    assert loop.num_tokens - before[0] > loop.num_steps - before[1], "no step wrote a token of both"
    stream.close()


def test_who_does_not_wait_for_an_answer_in_writing_leaves_the_running_batch(server, monkeypatch):
    monkeypatch.setattr(server.service.predictor, "decoding", Decoding(400, min_new_tokens=400))
    asked = {"question": "天", "options": {"A": "一", "B": "二"}, "scoring": "generate"}
    assert tokens_for_who_goes_away(server, "/v1/answer", asked) < 400


def test_a_problem_names_the_field_that_the_request_has(server):
    asked = {"question": "天", "options": {"A": "一", "B": "二"}, "scoring": "pll"}
    status, message = refusal(server, "/v1/answer", asked)
    assert status == 422 and message.startswith("scoring pll：")


def wait_until(condition):
    """Wait until something is so, at most ten seconds."""
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it never was")


def test_a_model_that_fails_fails_its_requests_and_answers_the_next_ones(tmp_path):
    with LiveServer(make_causal_dir(tmp_path / "m")) as server:
        body = {"prompt": "天", "max_tokens": 4}
        _, wanted = server.request("/v1/completions", body)
        forward, fails = server.service.predictor.model.forward, [True]

        def once(*args, **kwargs):
            if fails.pop() if fails else False:
                raise RuntimeError("out of memory")
            return forward(*args, **kwargs)

        server.service.predictor.model.forward = once
        once.__signature__ = __import__("inspect").signature(forward)
        status, message = refusal(server, "/v1/completions", body)
        assert status == 500 and "out of memory" in message
        assert server.request("/v1/completions", body)[1]["choices"] == wanted["choices"]


# ---- encoder-decoders, and our own client ------------------------------------------------------------------


def test_an_encoder_decoder_writes_what_the_command_line_writes(tmp_path, capsys):
    folder = encoder_decoders.save(tmp_path / "t5", "t5")
    texts = ["天地玄黃", "日月", "寒來暑往秋收冬藏"]
    wanted = [cli(capsys, folder, "--prompt", text, "--max_new_tokens", "12")["response"] for text in texts]
    with LiveServer(folder) as server:
        body = {"prompt": texts, "max_tokens": 12}
        _, answer = server.request("/v1/completions", body)
        assert [choice["text"] for choice in answer["choices"]] == wanted and any(wanted)
        _, longest = server.request("/v1/completions", {"prompt": texts[0], "max_tokens": 3, "stream": True})
        assert "[DONE]" in longest
        for more in ({"echo": True}, {"logprobs": 1}):
            assert refusal(server, "/v1/completions", body | more)[0] == 422
        assert refusal(server, "/v1/chat/completions", {"messages": []})[0] == 400
        asked = {"messages": [{"role": "user", "content": "天"}]}
        status, message = refusal(server, "/v1/chat/completions", asked)
        assert status == 400 and "/v1/completions" in message


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--prompt_format", "raw"], ["--scoring", "generate"]])
def test_an_exam_of_the_served_model_gives_the_figures_of_the_local_one(server, qwen_dir, tmp_path, more):
    exam, figures = tmp_path / "exam.jsonl", []
    row = {"question": "1 加 1 等於多少？", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "B"}
    rows = [row | {"question": text} for text in PROMPTS]
    exam.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    for model, extra in ((str(qwen_dir), ["--cpu", "--precision", "fp32"]), (server.url + "/v1", [])):
        report = tmp_path / f"report{len(figures)}"
        words = ["--model_path", model, *extra, "--exam", str(exam), "--report", str(report), *more]
        assert inference.main([*words, "--max_new_tokens", "16"]) == 0
        rows = [json.loads(line) for line in (report / "predictions.jsonl").read_text().splitlines()]
        figures.append([(row["id"], row["prediction"]) for row in rows])
    assert figures[0] == figures[1] and len(figures[0]) == 5
