"""Tracking services (--report_to): tensorboard, wandb, mlflow and trackio, through accelerate's trackers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import time
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from finetune.cli.train_args import TRACKERS
from finetune.runtime.console import log
from finetune.runtime.errors import Stopped, UserError
from finetune.runtime.files import atomic_write
from finetune.runtime.strict_json import dumps

PROJECT = "tmmluplus"  # runs are compared within a project
FILE = "tracker.json"  # beside train_log.jsonl: the tracker, and the id of its run
PER_QUESTION = ("fingerprints", "sketches")  # entries of a run card that are too long to be shown


def check_tracker(name: str) -> None:
    """Check that the package of a service is installed.

    Args:
        name: value of --report_to.

    Raises:
        UserError: it is not.
    """
    if name == "none":
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # no origin: just a folder of that name, as wandb writes one
        raise UserError(f"--report_to {name}：沒有安裝 {name}；pip install -r requirements-{name}.txt")


class _Service(ABC):
    """One run at a tracking service, around accelerate's tracker of that service.

    Args:
        folder: where train_log.jsonl is.
        known: id of the run to continue; "" begins a new one.
        step: optimizer steps taken already.
        config: flags, of types that every tracker takes.
    """

    # Documented environment variables that keep the service quiet, where the user has not set them.
    defaults: dict[str, str] = {}

    def __init__(self, folder: Path, known: str, step: int, config: dict[str, Any]):
        self.folder, self.known, self.step, self.config = folder, known, step, config
        self.id, self.where = known, ""  # where: how to look at the run, for the log
        self.tracker = self.make_tracker()
        self.tracker.main_process_only = False  # only the main process comes here
        self.tracker.start()
        self.after_start()

    @abstractmethod
    def make_tracker(self) -> Any:
        """Make accelerate's tracker; set `where`, and `id` where it is known already."""

    @abstractmethod
    def after_start(self) -> None:
        """Record the configuration and the id of the run that has started."""

    @abstractmethod
    def log_card(self, path: Path, shown: str, step: int) -> None:
        """Record the run card.

        Args:
            path: where run_card.json is.
            shown: its contents as Markdown, without the entries that are too long.
        """

    @abstractmethod
    def end(self, code: int, killed: bool) -> None:
        """End the run at the service.

        Args:
            code: exit code of the script.
            killed: a signal ended the run.
        """


class _TensorBoard(_Service):
    """TensorBoard: scalars and text in `runs/`, with the whole run card beside the events.

    It does not mark failed runs.
    """

    def make_tracker(self) -> Any:
        from accelerate.tracking import TensorBoardTracker

        self.id = self.known or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        self.where = f"tensorboard --logdir {self.folder / 'runs'}"
        # a resumed run takes the steps past its checkpoint, and logs them, once more
        options = {"purge_step": self.step + 1} if self.known else {}
        return TensorBoardTracker(self.id, self.folder / "runs", **options)

    def after_start(self) -> None:
        if not self.known:
            self.tracker.store_init_configuration(self.config)

    def log_card(self, path: Path, shown: str, step: int) -> None:
        self.tracker.log({"run_card": shown}, step=step)
        shutil.copy(path, self.tracker.tracker.log_dir)

    def end(self, code: int, killed: bool) -> None:
        self.tracker.finish()


class _WandB(_Service):
    """Weights & Biases: online with an API key, else offline into `wandb/`.

    The run card is in the configuration, and saved as a file.
    """

    defaults = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_ERROR_REPORTING": "false"}

    def make_tracker(self) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        options: dict[str, Any] = {"dir": os.environ.get("WANDB_DIR", self.folder), "config": self.config}
        if self.known:
            options |= {"id": self.known, "resume": "allow"}
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            options["mode"] = "offline"
        # The model folder may be replaced before an offline run is uploaded: copy the card, do not link it.
        options["settings"] = wandb.Settings(symlink=False)
        return WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **options)

    def after_start(self) -> None:
        run = self.tracker.tracker
        self.id, self.where = run.id, run.url
        if run.offline:
            folder = Path(run.dir).parent
            self.where = f"沒有連線，記在 {folder}；之後可用 wandb sync {folder} 上傳"

    def log_card(self, path: Path, shown: str, step: int) -> None:
        run = self.tracker.tracker
        run.config.update({"run_card": shown}, allow_val_change=True)
        run.save(str(path), base_path=str(path.parent), policy="now")

    def end(self, code: int, killed: bool) -> None:
        self.tracker.tracker.finish(exit_code=code)


class _MLflow(_Service):
    """MLflow: at MLFLOW_TRACKING_URI, else in `mlflow.db` with artifacts in `mlruns/`.

    MLflow 3 refuses to keep runs in plain files. The run card is an artifact.
    """

    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING",
        # by default each step would wait minutes for a server that is gone
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }  # fmt: skip

    def make_tracker(self) -> Any:
        import mlflow
        from accelerate.tracking import MLflowTracker

        server, database = os.environ.get("MLFLOW_TRACKING_URI"), f"sqlite:///{self.folder / 'mlflow.db'}"
        self.where = server or f"mlflow ui --backend-store-uri {database}"
        mlflow.set_tracking_uri(server or database)
        artifacts = None if server else (self.folder / "mlruns").as_uri()
        return MLflowTracker(PROJECT, logging_dir=artifacts, run_id=self.known or None)

    def after_start(self) -> None:
        self.id = self.tracker.tracker.info.run_id
        if not self.known:  # MLflow refuses to change a value, and --resume has another one
            self.tracker.store_init_configuration(self.config)

    def log_card(self, path: Path, shown: str, step: int) -> None:
        self.tracker.log_artifact(str(path))

    def end(self, code: int, killed: bool) -> None:
        import mlflow

        mlflow.end_run("KILLED" if killed else "FAILED" if code else "FINISHED")


class _Trackio(_Service):
    """Trackio, in its own folder (TRACKIO_DIR).

    The run card is shown as Markdown and kept as an artifact. It has no failed runs; an alert says that a run
    failed.
    """

    defaults = {"HF_HUB_DISABLE_TELEMETRY": "1"}

    def make_tracker(self) -> Any:
        from accelerate.tracking import TrackioTracker

        options = {"name": self.known, "resume": "allow"} if self.known else {}
        self.where = f"trackio show --project {PROJECT}"
        return TrackioTracker(PROJECT, config=self.config, **options)

    def after_start(self) -> None:
        self.id = self.tracker.tracker.name

    def log_card(self, path: Path, shown: str, step: int) -> None:
        import trackio

        self.tracker.log({"run_card": trackio.Markdown(shown)}, step=step)
        self.tracker.tracker.log_artifact(path, name="run_card", type="run_card")

    def end(self, code: int, killed: bool) -> None:
        import trackio

        if code:
            trackio.alert("中斷" if killed else "失敗", level=trackio.AlertLevel.ERROR)
        trackio.finish()  # the run's own method would leave a second finish, on stdout, for the exit


SERVICES: dict[str, type[_Service]] = dict(
    zip(TRACKERS, (_TensorBoard, _WandB, _MLflow, _Trackio), strict=True)
)


class Tracker:
    """A run at a tracking service: its training, and the evaluation after it.

    with Tracker(args.report_to, folder, vars(args)) as tracker:
        ...                              # the main process's TrainLog starts it, and logs
        tracker.finish(card, results)

    Leaving the block ends the run there: as finished, or as failed or killed where the service has these
    states. When a service fails, one line says so, it is no longer used, and training continues. Until it is
    started, as on all ranks but the first, nothing is logged.

    Args:
        name: one of TRACKERS or `none`.
        folder: where train_log.jsonl is.
        flags: become the run's configuration.
    """

    def __init__(self, name: str, folder: Path, flags: dict[str, Any]):
        self.name, self.folder, self.flags = name, folder, flags
        self._service: _Service | None = None
        self._step = 0

    def start(self, step: int) -> None:
        """Start a run, or continue the one of tracker.json when `step` optimizer steps are taken already.

        Raises:
            UserError: the service cannot be reached, or does not know the run any more.
        """
        if self.name == "none" or self._service is not None:  # started before a GPU ran out of memory
            return
        service_class = SERVICES[self.name]
        for name, value in service_class.defaults.items():
            os.environ.setdefault(name, value)
        known, self._step = self._saved_id() if step else "", step
        try:
            with _quiet_stdout():
                _let_accelerate_log(self.flags)
                service = service_class(self.folder, known, step, _configuration(self.flags))
        except Exception as error:
            hint = f"（它接續 {self.folder / FILE} 的 {known}；刪掉這個檔案就另開一個）" if known else ""
            raise UserError(f"--report_to {self.name} 無法開始：{error}{hint}") from error
        self._service = service
        atomic_write(self.folder / FILE, dumps({"tracker": self.name, "id": service.id}) + "\n")
        log(f"  --report_to {self.name}：{service.where}")

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers with names like `train/loss`, after `step` optimizer steps."""
        self._step = step
        self._call(lambda service: service.tracker.log(values, step=step))

    def finish(self, card: Path, results: dict[str, Any]) -> None:
        """Log the metrics of the evaluation and the run card.

        Args:
            card: run_card.json.
            results: nested in any way; its numbers are logged with names like `test/model/accuracy`.
        """
        if self._service is None:
            return
        self.log(flatten(results), self._step)
        saved = json.loads(card.read_text(encoding="utf-8"))
        shown = saved | {name: f"{len(saved[name])} 題" for name in PER_QUESTION if name in saved}
        text = f"```json\n{dumps(shown, indent=1)}\n```"
        self._call(lambda service: service.log_card(card, text, self._step))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        code = 0 if error is None else getattr(error, "exit_code", 1)
        killed = isinstance(error, (Stopped, KeyboardInterrupt))
        self._call(lambda service: service.end(code, killed))
        self._service = None

    def _call(self, action: Callable[[_Service], None]) -> None:
        """Do something with the service; when it fails, log that and use it no more."""
        if self._service is None:
            return
        try:
            with _quiet_stdout():
                action(self._service)
        except Exception as error:
            self._service = None
            log(f"⚠ --report_to {self.name} 失敗，這次執行不再記到那裡（{type(error).__name__}：{error}）")

    def _saved_id(self) -> str:
        """Return the id of the run to continue; "" when it was tracked elsewhere or not at all."""
        try:
            saved = json.loads((self.folder / FILE).read_text())
            return saved["id"] if saved["tracker"] == self.name else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def flatten(figures: dict[Any, Any], prefix: str = "") -> dict[str, int | float]:
    """Return the numbers of nested dicts by names like `test/model/accuracy`; bool is not a number.

    Other characters than every tracker takes in a name become `_`.
    """
    flat: dict[str, int | float] = {}
    for key, value in figures.items():
        name = prefix + re.sub(r"_*[^\w.-]+_*", "_", str(key)).strip("_")
        if isinstance(value, dict):
            flat |= flatten(value, name + "/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = value
    return flat


def _configuration(flags: dict[str, Any]) -> dict[str, int | float | str]:
    """Return the flags that were set, with values of types that every tracker takes."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in flags.items()
        if value is not None
    }


def _quiet_stdout() -> AbstractContextManager[Any]:
    """Discard what trackers print within the block, since stdout holds results alone."""
    return contextlib.redirect_stdout(io.StringIO())


def _let_accelerate_log(flags: dict[str, Any]) -> None:
    """Make the PartialState that accelerate's logger needs, without its changes to this process."""
    import torch
    from accelerate import PartialState

    from finetune.runtime.distributed import on_gpu

    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the threads it sets
        PartialState(cpu=not on_gpu(bool(flags.get("cpu"))))
    torch.set_num_threads(threads)
