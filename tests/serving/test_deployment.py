"""deploy/: what its files name is what the server has, so that they do not rot."""

from __future__ import annotations

import json
import re
import shlex
import socket
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from live_server import LiveServer

from finetune.cli import inference_checks, serve_checks
from finetune.serving import json_body

DEPLOY = ROOT / "deploy"
KEY = "a-key-of-the-tests"
EXPRESSIONS = re.compile(r"\b((?:finetune|process)_[a-z_]+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def server(model_dir):
    with LiveServer(model_dir, api_keys=(KEY,)) as server:
        yield server


@pytest.fixture(scope="module")
def figures(server) -> str:
    """What Prometheus reads, after an answer and a refusal."""
    assert server.request("/v1/fill", {"prompt": "天[MASK]"}, Authorization=f"Bearer {KEY}")[0] == 200
    assert server.request("/v1/fill", {"prompt": 1}, Authorization=f"Bearer {KEY}")[0] == 422
    status, text = server.request(_scraped()["metrics_path"], Authorization=f"Bearer {KEY}")
    assert status == 200
    return text


def _yaml(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def _board() -> dict:
    return json.loads((DEPLOY / "grafana/dashboards/finetune.json").read_text("utf-8"))


def _scraped() -> dict:
    (job,) = _yaml("prometheus.yml")["scrape_configs"]
    return job


def _expressions() -> list[str]:
    targets = [target["expr"] for panel in _board()["panels"] for target in panel["targets"]]
    rules = [rule["expr"] for group in _yaml("alerts.yml")["groups"] for rule in group["rules"]]
    return targets + rules


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def _started() -> dict[str, list[str]]:
    """The flags with which each of the ways starts inference.py."""
    entry = json.loads(dict(_instructions())["ENTRYPOINT"])
    unit = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "finetune.service").read_text("utf-8"), re.M))
    command = shlex.split(unit["ExecStart"])
    image = entry[entry.index("inference.py") + 1 :]
    return {
        "image": image,
        "compose": [*image, *_yaml("compose.yaml")["services"]["serve"]["command"]],
        "systemd": [word for word in command[command.index("inference.py") + 1 :] if word != "$FLAGS"],
    }


@pytest.mark.parametrize("way", ["image", "compose", "systemd"])
def test_every_way_starts_the_server_with_flags_that_are_read(way, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_checks, "listen", lambda *_: socket.socket())  # others may have the port
    (tmp_path / "api_key").write_text(KEY + "\n", encoding="utf-8")
    words = [
        re.sub(r"^(%d|/run/secrets)/api_key$", str(tmp_path / "api_key"), word) for word in _started()[way]
    ]
    flags = inference_checks.parse_args(words)
    assert flags.serve and flags.api_key == str(tmp_path / "api_key") and flags.port == 8000


def test_every_figure_that_a_panel_or_an_alarm_looks_at_is_one_of_the_server(figures):
    used = {name for expression in _expressions() for name, _ in EXPRESSIONS.findall(expression)}
    assert len(used) >= 20
    there = set(re.findall(r"^([a-z_]+)", figures, re.M))
    assert used <= there, used - there


def test_every_label_that_they_choose_or_group_by_is_one_of_these_figures(figures):
    checked = 0
    for expression in _expressions():
        named = EXPRESSIONS.findall(expression)
        grouped = [name.strip() for names in GROUPED.findall(expression) for name in names.split(",")]
        for metric, chosen in named:
            labels = {*re.findall(r"(\w+)[=!]", chosen), *grouped}
            for line in re.findall(rf"^{metric}\{{(.*)\}} ", figures, re.M)[:1]:
                assert labels <= set(re.findall(r'(\w+)="', line)), (expression, line)
                checked += len(labels)
    assert checked >= 10


def test_prometheus_reads_what_is_served_with_the_key_alone(server, figures):
    job = _scraped()
    assert "finetune_requests_total" in figures and server.request(job["metrics_path"])[0] == 401
    services = _yaml("compose.yaml")["services"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in services and port == "8000"
    secret = Path(job["authorization"]["credentials_file"]).name
    assert secret in services["prometheus"]["secrets"] and secret in services["serve"]["secrets"]


def test_the_health_check_asks_a_path_that_answers_without_a_key(server):
    path = re.search(r"127\.0\.0\.1:8000(/\w+)", dict(_instructions())["HEALTHCHECK"])[1]
    assert server.request(path) == (200, {"status": "ok"})


def test_grafana_finds_its_board_and_its_source():
    (source,) = _yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    (provider,) = _yaml("grafana/provisioning/dashboards/files.yaml")["providers"]
    services = _yaml("compose.yaml")["services"]
    assert source["url"].split("//")[1].split(":")[0] in services
    targets = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in targets
    board = _board()
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 15
    for panel in board["panels"]:
        grid = panel["gridPos"]
        assert panel["title"] and panel["targets"] and grid["x"] + grid["w"] <= 24


def test_every_file_that_compose_mounts_is_there():
    compose = _yaml("compose.yaml")
    mounted = [volume for one in compose["services"].values() for volume in one["volumes"]]
    files = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert len(files) == 4
    for name in files:
        assert (DEPLOY / name).exists(), name
    for name in {name for one in compose["services"].values() for name in one["secrets"]}:
        assert name in compose["secrets"]


def test_the_image_has_all_that_it_copies_and_nothing_else_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied: set[str] = set()
    for name, rest in _instructions():
        if name == "COPY" and "--from" not in rest:
            copied |= set(rest.split()[:-1])
    assert copied == let_through
    for name in copied:
        assert (ROOT / name).exists(), name
    assert any(fnmatch("finetune/x/__pycache__", line.replace("**", "*")) for line in ignored)


def test_no_container_is_root_can_gain_rights_or_is_of_no_version():
    parts = dict(_instructions())
    assert int(parts["USER"].split(":")[0]) > 0
    services = _yaml("compose.yaml")["services"]
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert "latest" not in service["image"] and ":" in service["image"]
    assert services["serve"]["read_only"] is True and services["serve"]["tmpfs"] == ["/tmp"]
    assert services["serve"]["volumes"] == ["${MODEL:?the folder of a model}:/model:ro"]


def test_what_stands_around_the_server_waits_longer_than_it_does():
    compose = _yaml("compose.yaml")["services"]["serve"]
    unit = (DEPLOY / "finetune.service").read_text("utf-8")
    nginx = (DEPLOY / "nginx.conf").read_text("utf-8")
    for way, waits in (
        ("compose", compose["stop_grace_period"]),
        ("systemd", re.search(r"^TimeoutStopSec=(\d+)", unit, re.M)[1]),
        ("systemd", re.search(r"proxy_read_timeout (\d+s)", nginx)[1]),
    ):
        words = _started()[way]
        assert _seconds(waits) > float(words[words.index("--request_timeout") + 1])
    assert int(re.search(r"client_max_body_size (\d+)m", nginx)[1]) << 20 >= json_body.BODY
    assert "SuccessExitStatus=143" in unit and "KillSignal=SIGTERM" in unit
