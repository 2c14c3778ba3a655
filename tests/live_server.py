"""A server of ours in a thread of the test: real requests over 127.0.0.1, without another process."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import uvicorn

from finetune.predict.loading import load_for_use, predictor_for
from finetune.serving.app import build_app
from finetune.serving.service import Service
from finetune.serving.settings import ServerSettings


class LiveServer:
    """`inference.py --serve` on a free port, as a context manager.

    Args:
        folder: the model.
        settings: fields of ServerSettings.

    Attributes:
        url: without a slash at its end.
        service: what serves, to be looked into.
    """

    def __init__(self, folder: Path, **settings: Any):
        loaded = load_for_use(str(folder), "cpu", "--model_path")
        predictor = predictor_for(*loaded, precision="fp32", name=str(folder))
        self.service = Service(predictor, ServerSettings(**{"name": "tiny", **settings}))
        config = uvicorn.Config(build_app(self.service), port=0, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive(), "the server did not start"
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_) -> None:
        self._server.should_exit = True
        self._thread.join()
        self.service.close()

    def request(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """(status, decoded JSON) of a POST with a body, which may be bytes, else of a GET."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        asked = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        return status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode()
