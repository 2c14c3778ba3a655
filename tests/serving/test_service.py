"""A model in service."""

from __future__ import annotations

import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from live_server import LiveServer

from finetune.cli.serve_checks import INSTALL
from finetune.runtime.errors import UserError
from finetune.serving import tickets
from finetune.serving.compute import ComputeThread
from finetune.serving.server import run_server
from finetune.serving.settings import ServerSettings
from finetune.serving.tickets import CancelledError, Ticket


def test_the_model_has_the_threads_of_the_process_though_those_of_requests_have_one(model_dir):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with LiveServer(model_dir) as server:
            assert server.request("/v1/fill", {"prompt": "天[MASK]玄黃"})[0] == 200
            assert server.service.compute.run(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)


def test_a_job_whose_request_was_given_up_before_it_began_is_not_run():
    compute, begun, go_on, ran = ComputeThread(), threading.Event(), threading.Event(), []
    compute.start()
    ticket = Ticket()

    def ask() -> None:
        tickets.current.set(ticket)
        with pytest.raises(CancelledError):
            compute.run(lambda: ran.append("given up"))
        ran.append("told")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(compute.run, lambda: (begun.set(), go_on.wait()))
        begun.wait()
        second = threads.submit(ask)
        while not ticket._callbacks:  # until the job waits
            pass
        ticket.cancel()
        second.result(10)  # though the first still runs
        go_on.set()
        first.result(10)
    compute.stop()
    assert ran == ["told"]


def test_a_model_whose_folder_was_deleted_still_answers_all_that_it_can(qwen_dir, tmp_path):
    folder = shutil.copytree(qwen_dir, tmp_path / "model")
    asked = [
        ("/v1/embeddings", {"input": "天地"}),
        ("/v1/completions", {"prompt": "天", "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "天"}], "max_tokens": 2}),
        ("/v1/answer", {"question": "天？", "options": {"A": "地", "B": "玄"}}),
    ]
    with LiveServer(folder) as server:
        shutil.rmtree(folder)
        assert [server.request(*request)[0] for request in asked] == [200] * len(asked)


def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "finetune.serving.service")
    monkeypatch.setitem(sys.modules, "starlette.requests", None)
    with pytest.raises(UserError) as refused:
        run_server(None, ServerSettings("tiny"))
    assert str(refused.value) == f"--serve：沒有安裝 starlette；請先執行 {INSTALL}"
