"""An OpenAI-compatible server of one's own on 127.0.0.1 around a tiny causal model: its answers are real, and
it fails as it is told to."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from conftest import make_causal_dir
from transformers import AutoModelForCausalLM, AutoTokenizer


def make_letter_model(folder: Path) -> Path:
    """A tiny GPT-2 with a chat template whose next tokens are likely to be letters: else servers would not
    list them."""
    make_causal_dir(folder, "gpt2", hidden_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"][-1] for text in ("A", "B", "C", "D", " A", " B", " C", " D")]
    with torch.no_grad():
        letters = torch.linalg.pinv(model.lm_head.weight[ids]).sum(1)
        model.transformer.ln_f.weight.mul_(0.5)
        model.transformer.ln_f.bias.copy_(letters * 12 / (model.lm_head.weight[ids] @ letters).mean())
    model.save_pretrained(folder)
    return folder


FAULTS = {
    "busy": (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
    "down": (503, {"detail": "loading"}),
    "garbage": (200, "<html>gateway"),
    "proxy": (200, {"error": {"message": "upstream", "code": 502}}),
}


class LoopbackServer:
    """Use as a context manager; `url` is what --model_path should be.

    Args:
        folder: the model.
        faults: what happens to the next requests but GET, in turn, once these are used up nothing: `busy`
            (429 with Retry-After: 0), `down` (503), `cut` (the connection ends in the middle of the answer),
            `garbage` (no JSON), `slow` (none for as long as `patience` seconds), `proxy` (an error within a
            200), or a status with a message and headers.
        echo: `full` as vLLM: no token is needed; `token`: one is; `ignored` as some; `refused` with 500 as
            llama.cpp.
        logprobs: False for a server without; `top`: the most it lists; more than that, or 5, it refuses.
        stalls_after: so many answers are given, then none.
        changes: what stands in every choice.
        names: models that it lists.
        key: what it wants to see; "" for anything.

    Attributes:
        asked: (path, body) of every request but GET.
        answered: bodies that were answered, as JSON.
        headers: of the last request.
    """

    def __init__(self, folder: Path, echo="full", logprobs=True, top=20, names=("tiny",), key="", usage=True):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.echo, self.logprobs, self.top, self.names, self.key = echo, logprobs, top, list(names), key
        self.usage, self.patience, self.stalls_after = usage, 0.5, math.inf
        self.changes: dict[str, Any] = {}
        self.faults: list[Any] = []
        self.asked: list[tuple[str, dict]] = []
        self.answered: list[str] = []
        self.headers: dict[str, str] = {}
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.headers = dict(self.headers)
                if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                    self.send(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
                    return
                rows = [{"id": name, "owned_by": "tests", "max_model_len": 512} for name in server.names]
                self.send(200, {"data": rows} if self.path == "/v1/models" else {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append((self.path, body))
                    server.headers = dict(self.headers)
                    fault = server.faults.pop(0) if server.faults else ""
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    self.respond(body, fault)
                finally:
                    with server._lock:
                        server._at_once -= 1

            def respond(self, body: dict, fault: Any):
                if fault == "slow" or len(server.answered) >= server.stalls_after:
                    server.over.wait(server.patience)
                    self.close_connection_now()
                elif fault in FAULTS:
                    self.send(*FAULTS[fault])
                elif isinstance(fault, tuple):
                    self.send(fault[0], {"error": {"message": fault[1]}}, dict(fault[2:]))
                else:
                    self.send_answer(body, fault == "cut", *server.answer(self.path, body))

            def send_answer(self, body: dict, cut: bool, status: int, answer: dict):
                if body.get("stream") and status == 200:
                    self.send_events(answer)
                    return
                if status == 200 and not cut:
                    with server._lock:
                        server.answered.append(json.dumps(body, sort_keys=True))
                self.send(status, answer, cut=cut)

            def close_connection_now(self):
                self.close_connection = True
                self.connection.close()

            def send(self, status: int, value: Any, headers: dict | None = None, cut: bool = False):
                content = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.close_connection = True

            def send_events(self, answer: dict):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Connection", "close")
                self.end_headers()
                choice = answer["choices"][0]
                pieces = [{"delta": {"content": letter}} for letter in choice["message"]["content"]]
                for piece in [{"delta": {"role": "assistant"}}, *pieces, {**choice, "message": None}]:
                    self.wfile.write(f"data: {json.dumps({'choices': [piece]})}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.over = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> LoopbackServer:
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()

    # ---- answers -------------------------------------------------------------------------------------------

    def answer(self, path: str, body: dict) -> tuple[int, dict]:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "bad key " + self.headers.get("Authorization", "")}}
        if body["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        chat = path == "/v1/chat/completions"
        wanted = body.get("top_logprobs") if chat else body.get("logprobs")
        if (wanted or 0) > max(self.top, 5):
            return 400, {"error": {"message": f"at most {self.top} logprobs"}}
        if chat:
            text = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=False
            )
        else:
            text = body["prompt"]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) + body["max_tokens"] > 512:
            return 400, {"error": {"message": f"maximum context length is 512, got {len(ids)} tokens"}}
        echo = not chat and body.get("echo", False)
        if echo and self.echo == "refused":
            return 500, {"error": {"message": "Only no echo is supported"}}
        if echo and self.echo == "token" and body["max_tokens"] < 1:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        with self._lock, torch.no_grad():
            new, rows = self._continue(ids, body["max_tokens"] or 1)
        if body["max_tokens"] == 0:
            new = []
        eos = self.tokenizer.eos_token_id
        choice: dict[str, Any] = {"finish_reason": "stop" if new[-1:] == [eos] else "length"}
        reply = self.tokenizer.decode(new, skip_special_tokens=True)
        for stop in body.get("stop", ()):
            if stop in reply:
                reply, choice["finish_reason"] = reply[: reply.index(stop)], "stop"
        if chat:
            choice["message"] = {"role": "assistant", "content": reply}
        else:
            choice["text"] = (text if echo else "") + reply
        if wanted and self.logprobs:
            shown = [*ids, *new] if echo and self.echo != "ignored" else new
            begin = 0 if len(shown) > len(new) else len(ids)
            choice["logprobs"] = self._logprobs(shown, rows, begin, min(wanted, self.top), chat)
        choice |= self.changes
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        return 200, {"choices": [choice], **({"usage": usage} if self.usage else {})}

    def _continue(self, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
        """The greedy continuation, and the log-probabilities at every position."""
        new: list[int] = []
        while True:
            rows = self.model(torch.tensor([[*ids, *new]])).logits[0].float().log_softmax(-1)
            new.append(int(rows[-1].argmax()))
            if len(new) == count or new[-1] == self.tokenizer.eos_token_id:
                return new, rows

    def _logprobs(self, shown: list[int], rows: torch.Tensor, begin: int, top: int, chat: bool) -> dict:
        name = self.tokenizer.decode
        tokens = [name([token]) for token in shown]
        places = [begin + at - 1 for at in range(len(shown))]
        values = [
            None if place < 0 else float(rows[place, token])
            for place, token in zip(places, shown, strict=True)
        ]
        tops = []
        for place in places:
            best = rows[place].topk(top) if place >= 0 else None
            tops.append(
                best and [(name([int(i)]), float(v)) for v, i in zip(best.values, best.indices, strict=True)]
            )
        if chat:
            return {
                "content": [
                    {"token": token, "logprob": value,
                     "top_logprobs": [{"token": t, "logprob": v} for t, v in listed]}
                    for token, value, listed in zip(tokens, values, tops, strict=True)
                ]
            }  # fmt: skip
        return {
            "tokens": tokens, "token_logprobs": values,
            "top_logprobs": [listed and dict(reversed(listed)) for listed in tops],
        }  # fmt: skip
