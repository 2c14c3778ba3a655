"""The server: a model and its flags become a process that listens until a signal ends it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

from finetune.cli.inference_args import KINDS, InferenceArgs
from finetune.cli.serve_checks import not_installed
from finetune.predict.predictor import LocalPredictor, Predictor
from finetune.runtime import streams
from finetune.runtime.console import log, logging_to
from finetune.runtime.errors import Stopped, UserError
from finetune.runtime.listening import address_of, listen
from finetune.runtime.signals import StopRequest

if TYPE_CHECKING:
    from finetune.serving.service import Service
    from finetune.serving.settings import ServerSettings
    from finetune.serving.uvicorn_server import Server

DRAINS = "收到停止訊號：不再收新的請求，收下的答完就結束（再按一次立刻結束）"
CLOSE_SECONDS = 10.0  # for the threads, once nobody waits for what they do


def serve_with_flags(predictor: Predictor, flags: InferenceArgs) -> None:
    """Serve a model as the flags say.

    Raises:
        Stopped: by a signal, when all that was accepted is answered.
        UserError: see `run_server`.
    """
    from finetune.serving.settings import ServerSettings

    settings = ServerSettings.from_flags(flags)
    signum, given_up = run_server(cast(LocalPredictor, predictor), settings)  # see `check_serve`
    if signum:
        raise Stopped(signum, f"已停止：{'；'.join(given_up) or '收下的請求都答完了'}")


def run_server(predictor: LocalPredictor, settings: ServerSettings) -> tuple[int, list[str]]:
    """Serve a model until a signal ends it; a second one ends the process at once.

    Returns:
        the signal as `StopRequest.signum` has it, and what accepted requests were given up, in sentences.

    Raises:
        UserError: the libraries of requirements-serve.txt are not installed; the port is taken.
    """
    try:
        from finetune.serving.service import Service
        from finetune.serving.uvicorn_server import Server
    except ImportError as error:
        missing = str(error.name).partition(".")[0]
        raise UserError(not_installed(missing)) from None

    with contextlib.closing(listen(settings.host, settings.port)) as listener:
        service = Service(predictor, settings, runs_here=True)
        log(_welcome(service, address_of(listener)[1]))
        with (
            StopRequest() as stop, stop.deferring(DRAINS), logging_to(service.log.remark),
            ThreadPoolExecutor(1, "web") as threads,
        ):  # fmt: skip
            server = Server(service, stop)
            web = threads.submit(_serve_requests, server, listener, service)
            try:
                service.compute.work()
                web.result()
            finally:
                _close(service, stop)
    return stop.signum, _given_up(server, settings)


def _given_up(server: Server, settings: ServerSettings) -> list[str]:
    late = f"{settings.request_timeout:g} 秒（--request_timeout）內沒有答完的，已經放棄"
    unread = f"有 {server.unread} 個回答，客戶端 {settings.write_timeout:g} 秒沒有來讀，沒有送完"
    return [late] * (not server.drained) + [unread] * (server.unread > 0)


def _serve_requests(server: Server, listener: socket.socket, service: Service) -> None:
    """Answer requests until the server ends; then end what runs the model."""
    try:
        server.run([listener])
    finally:
        service.compute.stop()


def _close(service: Service, stop: StopRequest) -> None:
    """End the threads of a service; where one does not end, end the process."""
    closing = threading.Thread(target=service.close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    if closing.is_alive() and stop.signum:  # the interpreter would wait for it without end
        streams.flush()
        os._exit(128 + stop.signum)


def _welcome(service: Service, port: int) -> str:
    """Return what is said once the server listens."""
    settings = service.settings
    host = f"[{settings.host}]" if ":" in settings.host.strip("[]") else settings.host
    url = f"http://{host}:{port}"
    computes = service.predictor.environment()
    key = (
        f"要有金鑰（{len(settings.api_keys)} 把）：標頭 Authorization: Bearer 金鑰"
        if settings.api_keys
        else "不需要金鑰：只有這台機器連得到"
    )
    return "\n".join((
        f"✓ {settings.name}（{KINDS[service.kind]}，{computes['precision']}，{computes['device']}）：{url}/",
        f"  網頁 {url}/ ，API 的說明 {url}/docs ，指標 {url}/metrics",
        f"  {key}；Ctrl-C 結束",
    ))  # fmt: skip
