"""A server of ours in a thread of the test: real requests over 127.0.0.1, without another process."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from finetune.predict.loading import load_for_use, predictor_for
from finetune.runtime.listening import address_of, listen
from finetune.serving.service import Service
from finetune.serving.settings import ServerSettings
from finetune.serving.uvicorn_server import Server


class LiveServer:
    """`inference.py --serve` on a free port, as a context manager.

    Args:
        folder: the model.
        settings: fields of ServerSettings.

    Attributes:
        url: without a slash at its end.
        port: of it.
        service: what serves, to be looked into.
        server: what runs it.
        lines: of its log.
    """

    def __init__(self, folder: Path, **settings: Any):
        loaded = load_for_use(str(folder), "cpu", "--model_path")
        predictor = predictor_for(*loaded, precision="fp32", name=str(folder))
        self.service = Service(predictor, ServerSettings(**{"name": "tiny", **settings}))
        self.lines: list[str] = []
        self.service.log.show = lambda text: self.lines.extend(text.split("\n"))
        self._listener = listen(self.service.settings.host, 0)
        self.port = address_of(self._listener)[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.service)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],), daemon=True)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        return self  # who connects waits in the queue of the socket until the server has started

    def stop(self) -> None:
        """Ends as a signal would have it."""
        self.server.should_exit = True
        self._thread.join()
        self._listener.close()

    def __exit__(self, *_) -> None:
        self.stop()
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
