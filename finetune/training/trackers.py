"""A run as a tracking service sees it: tensorboard, wandb, mlflow or trackio, by accelerate's trackers."""

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
from pathlib import Path

from finetune.cli.train_args import TRACKERS
from finetune.runtime.console import log
from finetune.runtime.errors import Stopped, UserError
from finetune.runtime.files import atomic_write
from finetune.runtime.strict_json import dumps

PROJECT = "tmmluplus"  # runs are compared within a project
FILE = "tracker.json"  # beside train_log.jsonl: which run of which tracker this is
PER_QUESTION = ("fingerprints", "sketches")  # of a run card: for programs, too long to be shown


def check_tracker(name: str) -> None:
    """Raises UserError when --report_to names a service whose package is not installed."""
    if name == "none":
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # no origin: a mere folder of that name, as wandb writes one
        raise UserError(f"--report_to {name}：沒有安裝 {name}；pip install -r requirements-{name}.txt")


class _Service:
    """One run at a tracking service, around accelerate's tracker of it.

    Args:
        folder: where train_log.jsonl is.
        known: the run to continue; `` begins a new one.
        step: optimizer steps done already.
        config: flags, of kinds that every tracker takes.
    """

    defaults: dict[str, str] = {}  # documented variables that keep it quiet; the person's own values stand

    def __init__(self, folder: Path, known: str, step: int, config: dict):
        self.folder, self.known, self.step, self.config = folder, known, step, config
        self.id, self.where = known, ""  # where: what a person is told
        self.tracker = self.make()
        self.tracker.main_process_only = False  # this is the main process; none else comes here
        self.tracker.start()
        self.started()


class _TensorBoard(_Service):
    """Scalars and text below `runs/`; the whole run card lies beside the events. Knows no failed runs."""

    def make(self):
        from accelerate.tracking import TensorBoardTracker

        self.id = self.known or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        self.where = f"tensorboard --logdir {self.folder / 'runs'}"
        again = {"purge_step": self.step + 1} if self.known else {}  # these are taken, and written, once more
        return TensorBoardTracker(self.id, self.folder / "runs", **again)

    def started(self) -> None:
        if not self.known:
            self.tracker.store_init_configuration(self.config)

    def card(self, path: Path, shown: str, step: int) -> None:
        self.tracker.log({"run_card": shown}, step=step)
        shutil.copy(path, self.tracker.tracker.log_dir)

    def end(self, code: int, killed: bool) -> None:
        self.tracker.finish()


class _WandB(_Service):
    """Online with an API key, else offline into `wandb/`. The run card: in the config, and as a file."""

    defaults = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_ERROR_REPORTING": "false"}

    def make(self):
        import wandb
        from accelerate.tracking import WandBTracker

        options = {"dir": os.environ.get("WANDB_DIR", self.folder), "config": self.config}
        if self.known:
            options |= {"id": self.known, "resume": "allow"}
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            options["mode"] = "offline"
        # The model folder may be replaced before an offline run is uploaded: a copy of the card, not a link.
        options["settings"] = wandb.Settings(symlink=False)
        return WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **options)

    def started(self) -> None:
        run = self.tracker.tracker
        self.id, self.where = run.id, run.url
        if run.offline:
            folder = Path(run.dir).parent
            self.where = f"沒有連線，記在 {folder}；之後可用 wandb sync {folder} 上傳"

    def card(self, path: Path, shown: str, step: int) -> None:
        run = self.tracker.tracker
        run.config.update({"run_card": shown}, allow_val_change=True)
        run.save(str(path), base_path=str(path.parent), policy="now")

    def end(self, code: int, killed: bool) -> None:
        self.tracker.tracker.finish(exit_code=code)


class _MLflow(_Service):
    """MLFLOW_TRACKING_URI, else `mlflow.db` with artifacts in `mlruns/`: MLflow 3 refuses to keep runs in
    plain files. The run card is an artifact.
    """

    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING",
        # or a server that is gone holds every step up for minutes before it is given up
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }  # fmt: skip

    def make(self):
        import mlflow
        from accelerate.tracking import MLflowTracker

        served, own = os.environ.get("MLFLOW_TRACKING_URI"), f"sqlite:///{self.folder / 'mlflow.db'}"
        self.where = served or f"mlflow ui --backend-store-uri {own}"
        mlflow.set_tracking_uri(served or own)
        artifacts = None if served else (self.folder / "mlruns").as_uri()
        return MLflowTracker(PROJECT, logging_dir=artifacts, run_id=self.known or None)

    def started(self) -> None:
        self.id = self.tracker.tracker.info.run_id
        if not self.known:  # MLflow refuses other values, and --resume is one
            self.tracker.store_init_configuration(self.config)

    def card(self, path: Path, shown: str, step: int) -> None:
        self.tracker.log_artifact(str(path))

    def end(self, code: int, killed: bool) -> None:
        import mlflow

        mlflow.end_run("KILLED" if killed else "FAILED" if code else "FINISHED")


class _Trackio(_Service):
    """Trackio's own folder (TRACKIO_DIR). The run card: shown as Markdown, kept as an artifact. It has no
    failed runs; an alert says it.
    """

    defaults = {"HF_HUB_DISABLE_TELEMETRY": "1"}

    def make(self):
        from accelerate.tracking import TrackioTracker

        again = {"name": self.known, "resume": "allow"} if self.known else {}
        self.where = f"trackio show --project {PROJECT}"
        return TrackioTracker(PROJECT, config=self.config, **again)

    def started(self) -> None:
        self.id = self.tracker.tracker.name

    def card(self, path: Path, shown: str, step: int) -> None:
        import trackio

        self.tracker.log({"run_card": trackio.Markdown(shown)}, step=step)
        self.tracker.tracker.log_artifact(path, name="run_card", type="run_card")

    def end(self, code: int, killed: bool) -> None:
        import trackio

        if code:
            trackio.alert("中斷" if killed else "失敗", level=trackio.AlertLevel.ERROR)
        trackio.finish()  # not the run's own method, which leaves a second end, on stdout, for the exit


SERVICES = dict(zip(TRACKERS, (_TensorBoard, _WandB, _MLflow, _Trackio), strict=True))


class Tracker:
    """A run as a tracking service sees it: the training, and the examination after it.

    with Tracker(flags.report_to, folder, vars(flags)) as tracker:
        ...                              # the main process's TrainLog starts it, and logs
        tracker.finish(card, results)

    Leaving the block ends the run there: well, or as failed or killed where the service knows that. A service
    that fails on the way is given up, in one line; the training goes on. Until it is started, as in all
    processes but the main one, nothing is logged.

    Args:
        name: one of TRACKERS or `none`.
        folder: where train_log.jsonl is.
        flags: become the run's configuration.
    """

    def __init__(self, name: str, folder: Path, flags: dict):
        self.name, self.folder, self.flags = name, folder, flags
        self._service, self._step = None, 0

    def start(self, step: int) -> None:
        """Begins a run, or continues the one of tracker.json when `step` optimizer steps are done already.

        Raises:
            UserError: the service cannot be reached, or does not know the run any more.
        """
        if self.name == "none" or self._service is not None:  # it may have begun before memory ran out
            return
        make = SERVICES[self.name]
        for name, value in make.defaults.items():
            os.environ.setdefault(name, value)
        known, self._step = self._known() if step else "", step
        try:
            with _quiet_stdout():
                _let_accelerate_log(self.flags)
                self._service = make(self.folder, known, step, _configuration(self.flags))
        except Exception as error:
            way_out = f"（它接續 {self.folder / FILE} 的 {known}；刪掉這個檔案就另開一個）" if known else ""
            raise UserError(f"--report_to {self.name} 無法開始：{error}{way_out}") from error
        atomic_write(self.folder / FILE, dumps({"tracker": self.name, "id": self._service.id}) + "\n")
        log(f"  --report_to {self.name}：{self._service.where}")

    def log(self, values: dict, step: int) -> None:
        """Numbers by names as `train/loss`, after `step` optimizer steps."""
        self._step = step
        self._do(lambda: self._service.tracker.log(values, step=step))

    def finish(self, card: Path, results: dict) -> None:
        """The figures of the evaluation and the run card.

        Args:
            card: run_card.json.
            results: nested as one likes; numbers are logged, by names as `test/model/accuracy`.
        """
        if self._service is None:
            return
        self.log(flatten(results), self._step)
        saved = json.loads(card.read_text(encoding="utf-8"))
        shown = saved | {name: f"{len(saved[name])} 題" for name in PER_QUESTION if name in saved}
        text = f"```json\n{dumps(shown, indent=1)}\n```"
        self._do(lambda: self._service.card(card, text, self._step))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind, error, trace) -> None:
        code = 0 if kind is None else getattr(error, "exit_code", 1)
        killed = isinstance(error, (Stopped, KeyboardInterrupt))
        self._do(lambda: self._service.end(code, killed))
        self._service = None

    def _do(self, act) -> None:
        if self._service is None:
            return
        try:
            with _quiet_stdout():
                act()
        except Exception as error:
            self._service = None
            log(f"⚠ --report_to {self.name} 失敗，這次執行不再記到那裡（{type(error).__name__}：{error}）")

    def _known(self) -> str:
        """The run to continue; `` when it was tracked elsewhere or not at all."""
        try:
            saved = json.loads((self.folder / FILE).read_text())
            return saved["id"] if saved["tracker"] == self.name else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def flatten(figures: dict, above: str = "") -> dict[str, int | float]:
    """The numbers of nested dicts by names as `test/model/accuracy`, of characters that every tracker takes;
    truth values are no numbers.
    """
    flat = {}
    for name, value in figures.items():
        name = above + re.sub(r"_*[^\w.-]+_*", "_", str(name)).strip("_")
        if isinstance(value, dict):
            flat |= flatten(value, name + "/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = value
    return flat


def _configuration(flags: dict) -> dict:
    """Flags of a kind that every tracker takes."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in flags.items()
        if value is not None
    }


def _quiet_stdout():
    """What trackers print goes nowhere: stdout holds results alone."""
    return contextlib.redirect_stdout(io.StringIO())


def _let_accelerate_log(flags: dict) -> None:
    """Its trackers log, and its logger wants a PartialState; which is to change nothing of this process."""
    import torch
    from accelerate import PartialState

    from finetune.runtime.distributed import on_gpu

    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the threads it sets
        PartialState(cpu=not on_gpu(bool(flags.get("cpu"))))
    torch.set_num_threads(threads)
