"""A model in service."""

from __future__ import annotations

import torch
from live_server import LiveServer


def test_the_model_has_the_threads_of_the_process_though_those_of_requests_have_one(model_dir):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with LiveServer(model_dir) as server:
            assert server.request("/v1/fill", {"prompt": "天[MASK]玄黃"})[0] == 200
            assert server.service.compute.run(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)
