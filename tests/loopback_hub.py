"""A Hugging Face hub of one's own on 127.0.0.1: enough of its protocol that the real client libraries
download from it.

It serves folders: {"bert-base-chinese": path} as models, {"ikala/tmmluplus": path} as data sets. A data set
may have a folder for each revision: {"ikala/tmmluplus": {"v1.0": path, "v1.1": path}}.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34


class LoopbackHub:
    """Use as a context manager; `url` is what HF_ENDPOINT should be, `asked` every path requested.

    Attributes:
        mood: how files are sent: "" as they are; `hangs`, `drips`, `halves` after an honest head; `floods`
            and says so; `pours` without end after an honest head; `is busy`; `sends on` to itself, for ever.
            `has no list`: a mirror that serves files and does not tell which.
    """

    mood = ""

    def __init__(self, models: dict[str, Path], datasets: dict, revisions=("main", "v1.1")):
        self.repos = {("models", name): path for name, path in models.items()}
        self.repos |= {("datasets", name): path for name, path in datasets.items()}
        self.revisions = {*revisions, COMMIT}
        self.asked: list[str] = []
        self.over = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.respond(body=False)

            def do_GET(self):
                self.respond(body=True)

            def respond(self, body: bool):
                hub.asked.append(self.path)
                status, content, headers = hub.answer(unquote(self.path.split("?")[0]))
                mood = hub.mood if "/resolve/" in self.path and status == 200 else ""
                if mood == "is busy":
                    status, headers = 503, {"Retry-After": "3600"}
                elif mood == "sends on":
                    status, headers = 302, {"Location": self.path}
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                poured = mood == "pours" and body
                if not poured:
                    size = 10**10 if mood == "floods" else len(content)
                    self.send_header("Content-Length", str(size))
                self.end_headers()
                if body:
                    try:
                        self.send(content, mood)
                    except OSError:  # who asked is gone
                        self.close_connection = True

            def send(self, content: bytes, mood: str):
                if mood in ("hangs", "drips"):
                    for at in range(len(content)):
                        if hub.over.wait(0.1 if mood == "drips" else 600):
                            break
                        self.wfile.write(content[at : at + 1])
                elif mood in ("pours", "floods"):
                    while not hub.over.is_set():
                        self.wfile.write(b" " * (1 << 20))
                elif mood == "halves":
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str) -> tuple[int, bytes, dict]:
        if path == "/":
            return 200, b"hub", {}
        if self.mood == "has no list" and path.startswith("/api/"):
            return self.missing("")
        if match := re.fullmatch(r"/api/(models|datasets)/(.+?)/tree/([^/]+)(?:/(.+))?", path):
            return self.tree(match[1], match[2], match[3], match[4] or "")
        if match := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/revision/([^/]+))?", path):
            return self.info(match[1], match[2], match[3] or "main")
        if match := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            return self.file("datasets" if match[1] else "models", match[2], match[3], match[4])
        return self.missing("EntryNotFound")

    def missing(self, code: str) -> tuple[int, bytes, dict]:
        return 404, b'{"error": "not found"}', {"X-Error-Code": code, "X-Repo-Commit": COMMIT}

    def info(self, kind: str, name: str, revision: str) -> tuple[int, bytes, dict]:
        if (kind, name) not in self.repos:
            return self.missing("RepoNotFound")
        commit, folder = self.folder(kind, name, revision)
        if folder is None:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": file["path"]} for file in self.files(folder)]
        card = {"id": name, "sha": commit, "siblings": siblings, "private": False, "gated": False, "tags": []}
        return 200, json.dumps(card).encode(), {"Content-Type": "application/json"}

    def tree(self, kind: str, name: str, revision: str, below: str) -> tuple[int, bytes, dict]:
        folder = self.folder(kind, name, revision)[1]
        if folder is None:
            return self.missing("RepoNotFound")
        found = [file for file in self.files(folder) if file["path"].startswith(below)]
        if not found:
            return self.missing("EntryNotFound")
        return 200, json.dumps(found).encode(), {"Content-Type": "application/json"}

    def folder(self, kind: str, name: str, revision: str) -> tuple[str, Path | None]:
        """The commit and folder of a revision, or of a commit; None where there is none."""
        served = self.repos.get((kind, name))
        if isinstance(served, dict):
            by_commit = {commit_of(known): known for known in served}
            known = by_commit.get(revision, revision)
            return commit_of(known), served.get(known)
        return COMMIT, served if revision in self.revisions else None

    def files(self, folder: Path) -> list[dict]:
        return [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": _etag(f)}
            for f in sorted(folder.rglob("*"))
            if f.is_file()
        ]

    def file(self, kind: str, name: str, revision: str, file: str) -> tuple[int, bytes, dict]:
        if (kind, name) not in self.repos:
            return self.missing("RepoNotFound")
        commit, folder = self.folder(kind, name, revision)
        if folder is None or not (folder / file).is_file():
            return self.missing("EntryNotFound")
        path = folder / file
        return 200, path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": commit}


def commit_of(revision: str) -> str:
    """The commit of a revision that has a folder of its own: itself where it is one."""
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else hashlib.sha1(revision.encode()).hexdigest()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def use_in_process(hub: LoopbackHub, monkeypatch, cache: Path) -> None:
    """Make the client of this process, imported already, ask this hub and keep what it fetches in `cache`."""
    from huggingface_hub import constants, hf_api

    file = "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{file}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
