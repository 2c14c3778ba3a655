"""What a server tells of itself: its figures, and its log."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from datetime import datetime

import pytest
from live_server import LiveServer
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics
from test_guard import ask

from finetune.runtime.console import log, logging_to
from finetune.serving.json_log import WAITING, JsonLog

SECRET = "天地玄黃宇宙洪荒"
LABELS = {"path", "status", "reason", "le"}  # those that tell a request; each has few values


@pytest.fixture
def server(model_dir):
    with LiveServer(model_dir) as server:
        yield server


def figures(server) -> dict[str, float]:
    """Figures by name and labels: `finetune_requests_total{path="/v1/fill",status="200"}`."""
    page = ask(server, "GET", "/metrics")[2]
    return {
        sample.name + "".join(sorted(f"[{k}={v}]" for k, v in sample.labels.items())): sample.value
        for family in plain_metrics(page)
        for sample in family.samples
    }


def lines_of(server, count: int = 1) -> list[dict]:
    """Lines of the log for the requests, which are written a moment after their answers."""
    end = time.monotonic() + 10
    while len(server.lines) < count:
        assert time.monotonic() < end, server.lines
        time.sleep(0.005)
    return [json.loads(line) for line in server.lines]


def test_requests_are_counted_by_path_and_status_and_timed(server):
    for body in ({"prompt": "天[MASK]"}, {"prompt": "地[MASK]"}, {"prompt": 3}):
        ask(server, "POST", "/v1/fill", body)
    seen = figures(server)
    assert seen["finetune_requests_total[path=/v1/fill][status=200]"] == 2
    assert seen["finetune_requests_total[path=/v1/fill][status=422]"] == 1
    assert seen["finetune_request_seconds_count[path=/v1/fill]"] == 3
    assert seen["finetune_rejected_total[reason=invalid]"] == 1
    assert seen["finetune_requests_accepted"] == 0 and seen["finetune_requests_in_flight"] == 1  # this one


def test_passes_are_counted_with_their_size_and_what_waited_for_them(server):
    ask(server, "POST", "/v1/fill", {"prompt": "天地[MASK]玄黃"})
    seen = figures(server)
    calls = server.service.predictor.forward.calls
    assert seen["finetune_pass_rows_count"] == calls.num_rounds == 1
    assert seen["finetune_pass_calls_sum"] == seen["finetune_queue_seconds_count"] == calls.num_calls
    assert seen["finetune_pass_rows_sum"] == 1 and 7 <= seen["finetune_pass_tokens_sum"] <= 16
    assert 0 < seen["finetune_pass_seconds_sum"] < seen["finetune_request_seconds_sum[path=/v1/fill]"]


def test_tokens_that_are_read_and_generated_are_counted(server):
    server.service.metrics.wrote(prompt_tokens=7, generated_tokens=3)
    server.service.metrics.wrote(prompt_tokens=1, generated_tokens=0)
    seen = figures(server)
    assert (seen["finetune_prompt_tokens_total"], seen["finetune_generated_tokens_total"]) == (8, 3)


def test_the_model_and_the_process_are_described(server):
    page = ask(server, "GET", "/metrics")[2]
    (model,) = re.findall(r"finetune_model_info\{(.*)\} 1.0", page)
    facts = dict(re.findall(r'(\w+)="(.*?)"', model))
    assert facts.pop("version") is not None
    assert facts == {"name": "tiny", "kind": "masked", "precision": "fp32", "device": "cpu"}
    assert "process_resident_memory_bytes" in page and "python_info" in page


def test_both_text_formats_are_written(server):
    plain = ask(server, "GET", "/metrics", headers={"Accept": "text/plain"})
    opened = ask(server, "GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert plain[1]["Content-Type"].startswith("text/plain")
    assert opened[1]["Content-Type"].startswith("application/openmetrics-text")
    names = [{family.name.removesuffix("_info") for family in read(page[2])} for read, page in
             ((plain_metrics, plain), (open_metrics, opened))]  # fmt: skip
    assert "finetune_requests" in names[0] and names[0] == names[1]


def test_whatever_paths_and_methods_are_tried_the_figures_stay_as_many(server):
    ask(server, "POST", "/v1/other", {})
    ask(server, "GET", "/v1/other")
    figures(server)
    few = len(figures(server))  # the requests for the figures themselves are counted by now
    for number in range(50):
        ask(server, "GET", f"/v1/{number}?{SECRET.encode()!r}")
        ask(server, "POST", f"/{number}/v1/fill", {})
    seen = figures(server)
    assert len(seen) == few
    assert seen["finetune_requests_total[path=other][status=404]"] == 102
    assert not re.search("天|49", json.dumps([name for name in seen if "le=" not in name]))


# ---- the log -----------------------------------------------------------------------------------------------


def test_a_request_is_a_line_with_when_what_how_long_and_for_whom_but_without_its_texts(server):
    assert ask(server, "POST", f"/v1/fill?q={json.dumps(SECRET)}", {"prompt": SECRET + "[MASK]"})[0] == 200
    assert ask(server, "POST", "/v1/fill", {SECRET: SECRET})[0] == 422
    first, second = lines_of(server, 2)
    assert set(first) == {
        "time", "event", "method", "path", "status", "seconds", "bytes", "client", "request_id"
    }  # fmt: skip
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/fill", 200)
    assert second["status"] == 422 and first["request_id"] != second["request_id"]
    assert datetime.fromisoformat(first["time"]).tzinfo and first["client"].startswith("127.0.0.1:")
    assert first["bytes"] > 100 and 0 < first["seconds"] < 10
    assert SECRET not in "".join(server.lines) and "\\u5929" not in "".join(server.lines)


def test_texts_are_logged_only_on_request(model_dir):
    with LiveServer(model_dir, log_texts=True) as server:
        answer = ask(server, "POST", "/v1/fill", {"prompt": SECRET + "[MASK]"})[2]
        (line,) = lines_of(server)
    assert (
        json.loads(line["request"]) == {"prompt": SECRET + "[MASK]"} and json.loads(line["answer"]) == answer
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [("my-id.1:2_3", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("<b>", False)],
)
def test_an_id_of_the_clients_is_kept_where_it_is_one(server, given, kept):
    answer = ask(server, "GET", "/healthz", headers={"X-Request-Id": given})
    (line,) = lines_of(server)
    assert answer[1]["X-Request-Id"] == line["request_id"] and (line["request_id"] == given) == kept


def test_every_answer_has_an_id_refusals_too(server):
    for path, status in (("/healthz", 200), ("/nothing", 404)):
        answer = ask(server, "GET", path)
        assert answer[0] == status and answer[1]["X-Request-Id"]


def test_what_a_model_remarks_is_a_line_of_json_and_only_where_texts_are(capfd):
    for with_texts in (True, False):
        written = JsonLog(lambda count: None, with_texts)
        with logging_to(written.remark):
            log(f"⚠ {SECRET} \x1b[2J")
        written.close()
        said = capfd.readouterr().err
        assert ("⚠" in said) == with_texts and "\x1b" not in said
        assert not with_texts or json.loads(said)["message"] == f"⚠ {SECRET} \x1b[2J"
    log("again for people")
    assert capfd.readouterr().err == "again for people\n"


def test_a_log_whose_reader_is_stuck_holds_nobody_up_and_what_it_drops_is_counted():
    dropped: Counter = Counter()
    written = JsonLog(lambda count: dropped.update(lines=count))
    started, go_on, seen = [], threading.Event(), []

    def stuck(text: str) -> None:
        started.append(text)
        go_on.wait(30)
        seen.extend(text.split("\n"))

    written.show = stuck
    for number in range(2 * WAITING):
        written.write("request", number=number)
    assert WAITING - 1000 < dropped["lines"] <= WAITING
    go_on.set()
    written.close()
    assert len(seen) + dropped["lines"] == 2 * WAITING


def test_a_line_cannot_be_forged(server):
    ask(server, "GET", "/%0a%7b%22event%22:%22request%22%7d%1b%5b2J")
    (line,) = lines_of(server)
    assert line["status"] == 404 and len(server.lines) == 1 and "\x1b" not in server.lines[0]
