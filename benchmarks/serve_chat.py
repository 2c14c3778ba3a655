"""Chat of our server beside `transformers serve`: the same model, the same prompts, greedy.

python benchmarks/serve_chat.py [--clients 1 8] [--runs 5] [--continuous]

A small Qwen2 with random weights; each client asks again when it is answered, until its share of the prompts
is through. Replies are of 16 to 96 tokens, streamed. The servers take turns. Prints tokens a second and the
median time to the first token, ours over theirs, and whether both wrote the same texts; writes
benchmarks/results.json. With --continuous the other server batches too (`--continuous-batching`).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import workload
from harness import ROOT, RUNS, Measurement, alternate, compare, machine, show, write
from serve import free_port, running

SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 1408, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REPLIES = (16, 96)  # tokens of a reply, the least and the most
REQUESTS = 16  # of all clients together in a run
PATH = "/v1/chat/completions"


@dataclass
class Seen:
    """What the clients saw in a run.

    Attributes:
        rate: tokens a second.
        first: median seconds until the first piece of text.
        texts: the replies, in the order of the prompts.
    """

    rate: float
    first: float
    texts: list[str]


def model_of(folder: Path) -> Path:
    """Write a model with random weights that never ends a reply, and a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    first = workload.IDEOGRAPHS.start
    words = [
        *SPECIAL,
        "<unk>",
        "\n",
        *map(chr, range(33, 127)),
        *map(chr, range(first, first + workload.COMMON)),
    ]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=SPECIAL[2], pad_token=SPECIAL[0], unk_token="<unk>",
        additional_special_tokens=list(SPECIAL), chat_template=TEMPLATE,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ends = {"eos_token_id": 2, "bos_token_id": None, "pad_token_id": 0}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words), initializer_range=0.1, **SHAPE, **ends))
    with torch.no_grad():
        model.lm_head.weight[: words.index("\n") + 1] = 0  # another token always has a higher logit
    model.save_pretrained(folder)
    return folder


def requests_of(model: Path) -> list[bytes]:
    """Bodies as long as the questions of an exam, with replies of unlike length."""
    rng = random.Random(3)
    bodies = []
    for _ in range(REQUESTS):
        text = workload.text(workload.length(workload.STEM, rng), rng)
        messages = [{"role": "user", "content": text}]
        body = {"model": str(model), "messages": messages, "temperature": 0, "stream": True}
        bodies.append(json.dumps({**body, "max_tokens": rng.randint(*REPLIES)}).encode())
    return bodies


def ask(url: str, body: bytes) -> tuple[str, float]:
    """Return a streamed reply, and the seconds until its first piece of text."""
    line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
    begun, first, pieces = time.perf_counter(), 0.0, []
    line.request("POST", PATH, body, {"Content-Type": "application/json"})
    with contextlib.closing(line), line.getresponse() as answer:
        if answer.status != 200:
            raise SystemExit(f"{url}: {answer.status} {answer.read()[:500]!r}")
        for raw in answer:
            if not raw.startswith(b"data: {"):
                continue
            for choice in json.loads(raw[6:])["choices"]:
                piece = choice["delta"].get("content")
                if (
                    piece and SPECIAL[1] not in piece
                ):  # transformers writes the ends of the prompt's turns too
                    first = first or time.perf_counter() - begun
                    pieces.append(piece)
    return "".join(pieces), first


def run(url: str, bodies: Sequence[bytes], clients: int) -> Seen:
    """Have clients ask for everything once."""
    texts, firsts, waiting = [""] * len(bodies), [0.0] * len(bodies), list(range(len(bodies)))[::-1]
    failed: list[BaseException] = []

    def client() -> None:
        try:
            while True:
                with contextlib.suppress(IndexError):
                    at = waiting.pop()
                    texts[at], firsts[at] = ask(url, bodies[at])
                    continue
                return
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failed:
        raise failed[0]
    tokens = sum(json.loads(body)["max_tokens"] for body in bodies)
    return Seen(tokens / seconds, statistics.median(firsts), texts)


def measured(folder: Path, clients: Sequence[int], runs: int, continuous: bool) -> list[Measurement]:
    """Start both servers and have them take turns."""
    model = model_of(folder / "model")
    bodies, ports = requests_of(model), (free_port(), free_port())
    ours = [
        "inference.py", "--model_path", model, "--cpu", "--precision", "fp32", "--serve",
        "--port", ports[0], "--served_model", model,
    ]  # fmt: skip
    script = Path(sys.executable).parent / "transformers"
    theirs = [script, "serve", model, "--device", "cpu", "--dtype", "float32", "--port", ports[1]]
    theirs += ["--continuous-batching"] * continuous
    against = "transformers serve" + " --continuous-batching" * continuous
    found = []
    with (
        running(*ours, port=ports[0], alive="/readyz") as our_server,
        running(*theirs, port=ports[1], alive="/health") as their_server,
    ):
        for count in clients:
            ways = {
                "ours": partial(run, our_server.url, bodies, count),
                against: partial(run, their_server.url, bodies, count),
            }
            for way in ways.values():
                way()  # not counted
            seen = alternate(ways, runs)
            mine, others = seen["ours"], seen[against]
            equal = sum(one == other for one, other in zip(mine[0].texts, others[0].texts, strict=True))
            print(f"{count} clients: {equal} of {len(bodies)} texts are the same", file=sys.stderr)
            name = f"chat, {count} clients" if count > 1 else "chat, one client"
            rates = [one.rate for one in mine], [one.rate for one in others]
            firsts = [one.first for one in mine], [one.first for one in others]
            found.append(compare(name, against, "tokens/s", *rates, ">= 2.0" if count == 8 else ">= 1.0"))
            found.append(compare(f"{name}: first token", against, "s", *firsts, "<= 1.0"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--continuous", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), flags.clients, flags.runs, flags.continuous)
    show(found)
    write(ROOT / "benchmarks/results.json", machine(), found)


if __name__ == "__main__":
    main()
