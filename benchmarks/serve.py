"""Our server beside a plain FastAPI handler with transformers' pipeline: the same model, the same texts.

python benchmarks/serve.py [fill] [classify] [--sizes base small] [--runs 5] [--precision auto]

64 clients that each ask again when they are answered, for 20 seconds after 5 that are not counted; the ways
take turns. Then one client alone, whose requests take turns with their forward passes in this process. Prints
a table, and writes benchmarks/results_serve.json. README.md here says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import psutil
import workload
from harness import ROOT, RUNS, Measurement, alternate, compare, machine, process, show, timed, write
from serving_load import Load

SIZES = {  # layers, width, heads, width of the feed-forward part
    "base": (12, 768, 12, 3072),
    "small": (6, 384, 12, 1536),
}
LABELS = 8
TEXTS = 512
LONE = 60  # texts of the client that is alone
PATIENCE = 300.0  # seconds in which a server has to be there
HANDLERS = ("def", "async")
SETTLED, BUSY = 1.0, 10.0  # seconds in which a server at rest computes less than so many per cent of a core


@dataclass(frozen=True)
class Task:
    """What is asked: our path, the field of its text, the pipeline."""

    path: str
    field: str
    pipeline: str


TASKS = {
    "fill": Task("/v1/fill", "prompt", "fill-mask"),
    "classify": Task("/v1/classify", "text", "text-classification"),
}


@dataclass(frozen=True)
class Effort:
    """How long is measured: clients, seconds that count and seconds before, runs; precision of ours."""

    clients: int
    seconds: float
    warmup: float
    runs: int
    precision: str


def model_of(folder: Path, task: str, size: str) -> Path:
    """Write a BERT with random weights and its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    layers, width, heads, inner = SIZES[size]
    config = BertConfig(
        vocab_size=workload.VOCABULARY, num_hidden_layers=layers, hidden_size=width,
        num_attention_heads=heads, intermediate_size=inner, num_labels=LABELS,
    )  # fmt: skip
    torch.manual_seed(0)
    (BertForMaskedLM if task == "fill" else BertForSequenceClassification)(config).save_pretrained(folder)
    workload.tokenizer().save_pretrained(folder)
    return folder


def texts_of(task: str) -> list[str]:
    """Texts as long as the questions of an exam; of those to fill, one character is a blank."""
    rng = random.Random(5)
    texts = [workload.text(workload.length(workload.STEM, rng), rng) for _ in range(TEXTS)]
    if task != "fill":
        return texts
    places = [rng.randrange(len(text)) for text in texts]
    return [f"{text[:at]}[MASK]{text[at + 1 :]}" for text, at in zip(texts, places, strict=True)]


@dataclass(frozen=True)
class Running:
    """A server that runs: its address and its process."""

    url: str
    process: psutil.Process

    def settle(self) -> None:
        """Wait until it computes no more.

        A plain handler goes on with the requests of clients that are gone, for seconds, and takes the cores
        from the server that is measured next.
        """
        until = time.monotonic() + PATIENCE
        while self.process.cpu_percent(SETTLED) > BUSY:
            if time.monotonic() > until:
                raise SystemExit(f"{self.url} never comes to rest")


@contextlib.contextmanager
def running(*words: object, port: int, alive: str) -> Iterator[Running]:
    """A server while it is needed.

    Args:
        words: the script that serves and its arguments.
        alive: a path that answers once it is there.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=said, stderr=said)
        try:
            until = time.monotonic() + PATIENCE
            while not _answers(url + alive):
                if child.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise SystemExit(f"{words} does not answer:\n{said.read()[-4000:]}")
                time.sleep(0.2)
            yield Running(url, psutil.Process(child.pid))
        finally:
            child.terminate()
            child.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def load(server: Running, path: str, bodies: Path, clients: int, seconds: float, warmup: float) -> Load:
    """Have clients ask for some seconds, in a process of their own; then let the server come to rest."""
    url = server.url + path
    flags = ("--clients", clients, "--seconds", seconds, "--warmup", warmup)
    found = Load(**json.loads(process("benchmarks/serving_load.py", url, bodies, *flags).out))
    print(f"  {url}, {clients} clients: {found}", file=sys.stderr, flush=True)
    server.settle()
    return found


class LoneClient:
    """A client that is alone, whose requests take turns with the forward passes that are made for them.

    The passes run in this process: what slows the machine for a moment slows both.

    Args:
        folder: the model.
        task: a key of TASKS.
        texts: that are asked for.
        precision: of the model.
    """

    def __init__(self, folder: Path, task: str, texts: list[str], precision: str):
        from finetune.models import cpu
        from finetune.predict import records
        from finetune.predict.loading import load_for_use, predictor_for

        cpu.tune_malloc()
        predictor = predictor_for(*load_for_use(str(folder), "cpu", "--model_path"), precision, "bare")
        self._forward, calls = predictor.forward, []

        def recorded(*call):
            calls.append(call)
            return self._forward(*call)

        predictor.forward = recorded
        for text in texts:
            if task == "fill":
                records.fill_record(predictor, text, 5)
            else:
                records.labels_record(predictor, text)
        self._about = TASKS[task]
        self._asked = list(zip(texts, calls, strict=True))

    def run(self, port: int) -> tuple[float, float]:
        """Return the medians of the milliseconds of a request, and of its forward pass."""
        import torch

        line = http.client.HTTPConnection("127.0.0.1", port)
        requests, passes = [], []
        for text, call in self._asked:
            body = json.dumps({self._about.field: text})

            def ask(body: str = body) -> None:
                line.request("POST", self._about.path, body, {"Content-Type": "application/json"})
                answer = line.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()

            requests.append(timed(ask))
            with torch.no_grad():
                passes.append(timed(partial(self._forward, *call)))
        line.close()
        return 1000 * statistics.median(requests), 1000 * statistics.median(passes)


def measure(home: Path, task: str, size: str, effort: Effort) -> list[Measurement]:
    """Answers a second and latency beside the handlers, then a lone request beside its forward pass."""
    about = TASKS[task]
    folder = model_of(home / f"{task}_{size}", task, size)
    texts = texts_of(task)
    ours, theirs = home / "ours.json", home / "theirs.json"
    ours.write_text(json.dumps([{about.field: text} for text in texts]), "utf-8")
    theirs.write_text(json.dumps([{"text": text} for text in texts]), "utf-8")
    our_port, their_port = free_port(), free_port()
    serve = ("inference.py", "--serve", "--cpu", "--model_path", folder, "--port", our_port)
    serve += ("--precision", effort.precision) if effort.precision != "auto" else ()
    peer = ("benchmarks/peers/fastapi_handler.py", about.pipeline, folder, their_port)
    how = effort.clients, effort.seconds, effort.warmup
    with (
        running(*serve, port=our_port, alive="/healthz") as our_server,
        running(*peer, port=their_port, alive="/docs") as their_server,
    ):
        ways = {"ours": partial(load, our_server, about.path, ours, *how)}
        ways |= {name: partial(load, their_server, f"/{name}", theirs, *how) for name in HANDLERS}
        found = alternate(ways, effort.runs)
        client = LoneClient(folder, task, texts[:LONE], effort.precision)
        client.run(our_port)
        lone = alternate({"request": partial(client.run, our_port)}, effort.runs)["request"]
    best = max(HANDLERS, key=lambda name: statistics.median(one.rate for one in found[name]))
    what = f"serving, {task}, {size}, {effort.precision}, {effort.clients} clients"
    against = f"FastAPI and pipeline, {best}"

    def figures(way: str, name: str) -> list[float]:
        return [getattr(one, name) for one in found[way]]

    return [
        compare(what, against, "answer/s", figures("ours", "rate"), figures(best, "rate"), ">= 8.0"),
        compare(f"{what}, p50", against, "ms", figures("ours", "p50"), figures(best, "p50"), "<= 1.0"),
        compare(f"{what}, p95", against, "ms", figures("ours", "p95"), figures(best, "p95"), "<= 1.0"),
        compare(
            f"serving, {task}, {size}, {effort.precision}, one client", "the forward pass alone", "ms",
            [request for request, _ in lone], [alone for _, alone in lone], "<= 1.3",
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--precision", default="auto", help="of ours; the pipeline computes as it was saved: in fp32"
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--write", type=Path, default=ROOT / "benchmarks" / "results_serve.json")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(TASKS):
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(TASKS)}")
    effort = Effort(flags.clients, flags.seconds, flags.warmup, flags.runs, flags.precision)
    found: list[Measurement] = []
    about = machine()
    for task in flags.names or TASKS:
        for size in flags.sizes:
            with tempfile.TemporaryDirectory() as home:
                part = measure(Path(home), task, size, effort)
            write(flags.write, about, part)
            found += part
    show(found)


if __name__ == "__main__":
    main()
