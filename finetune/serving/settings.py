"""Settings of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.cli.inference_args import InferenceArgs
from finetune.cli.serve_checks import is_loopback, read_keys
from finetune.runtime.errors import UserError

WORKERS = 64  # threads that prepare requests and read their results; the model runs in one of its own


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server, by the flags of their names.

    Args:
        name: what clients call the model.
        api_keys: one of them must come with every request; none are needed where there are none.
        max_queue: requests that are accepted and not answered yet.
        request_timeout: seconds for an answer.
        read_timeout: seconds in which a request must be there, from its first byte to its last.
        idle_timeout: seconds that a connection is kept between two requests.
        write_timeout: seconds that a client may leave unread what is sent to it.
        debug: tracebacks of errors are logged.

    Raises:
        UserError: an address that other machines reach, without a key.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_queue: int = 256
    request_timeout: float = 600.0
    log_texts: bool = False
    watch: Path | None = None
    pooling: str = "auto"
    read_timeout: float = 30.0
    idle_timeout: float = 30.0
    write_timeout: float = 30.0
    debug: bool = False

    def __post_init__(self) -> None:
        if not self.api_keys and not is_loopback(self.host):
            raise UserError(f"host={self.host!r}：別的機器也連得到，要有 api_keys；或只給這台機器用")

    @classmethod
    def from_flags(cls, flags: InferenceArgs) -> ServerSettings:
        """Return the settings that flags ask for."""
        return cls(
            name=flags.served_model or model_name(flags.model_path),
            host=flags.host, port=flags.port, max_queue=flags.max_queue,
            api_keys=read_keys(flags.api_key) if flags.api_key is not None else (),
            cors_origins=tuple(origin.rstrip("/") for origin in flags.cors_origin),
            request_timeout=flags.request_timeout, log_texts=flags.log_texts,
            watch=Path(flags.watch) if flags.watch is not None else None, pooling=flags.pooling,
            debug=flags.debug,
        )  # fmt: skip


def model_name(path: str) -> str:
    """Return what a model is called: its name on the hub, or that of its folder."""
    folder = Path(path).expanduser()
    return folder.resolve().name if folder.exists() else path
