"""Process group of one run: rank, world size, device and collectives.

Ranks are read from the environment alone (RANK, WORLD_SIZE, LOCAL_RANK), which every launcher sets
(torchrun, deepspeed, accelerate). Without a launcher there is one process and no communication.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.runtime.console import log
from finetune.runtime.errors import RunError, Stopped
from finetune.runtime.watchdog import Watchdog

T = TypeVar("T")
LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "accelerate")
GRACE_SECONDS = 60  # to write a last checkpoint once the launcher is gone


def launched_by() -> str:
    """Return `deepspeed`, `torchrun` (accelerate's plain launcher included), or "" without a launcher."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" or "CROSS_SIZE" in os.environ:
        return "deepspeed"
    return "torchrun" if "RANK" in os.environ else ""


def on_gpu(cpu: bool) -> bool:
    """Return True when this run uses a GPU: one is present, and --cpu was not given."""
    return torch.cuda.is_available() and not cpu


@dataclass
class Distributed:
    """One process of `size`. All ranks must make the collective calls, in the same order."""

    rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = None  # only with several ranks

    @property
    def is_main(self) -> bool:
        """Return True on rank 0."""
        return self.rank == 0

    @classmethod
    def init(cls, cpu: bool, force_group: bool = False, doing: str = "訓練") -> Distributed:
        """Choose the device, set the number of threads and join the process group.

        Args:
            cpu: do not use the GPU.
            force_group: make a process group even for one process (DeepSpeed needs one).
            doing: the activity (in Chinese) that the log line about several CPU processes names.
        """
        size, rank = int(os.environ.get("WORLD_SIZE") or 1), int(os.environ.get("RANK") or 0)
        local = int(os.environ.get("LOCAL_RANK") or 0)
        if on_gpu(cpu):
            device = torch.device("cuda", local % torch.cuda.device_count())
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
            if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:  # else every rank takes every core
                torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
        if size > 1 or force_group:
            # torch warns of its own deprecated names at every collective that DeepSpeed makes
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
            if "RANK" not in os.environ:
                os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
                os.environ["MASTER_PORT"] = str(_free_port())
            if not dist.is_initialized():
                backend = "nccl" if device.type == "cuda" else "gloo"
                dist.init_process_group(backend, timeout=timedelta(hours=1))
        if launched_by():
            _follow_launcher()
        if size > 1 and device.type == "cpu":
            log(f"在 {size} 個 CPU 行程上{doing}（沒有用 GPU），每個行程 {torch.get_num_threads()} 個執行緒")
        world = cls(rank, size, device)
        if size > 1:
            world.watchdog = Watchdog(rank, size, world.broadcast)
        return world

    def detach(self) -> None:
        """Detach this rank from the watchdog: the others no longer notice when it ends."""
        if self.watchdog:
            self.watchdog.detach()

    def shutdown(self) -> None:
        """Destroy the process group. Not to be called after a failure, when other ranks may not answer."""
        self.detach()
        if dist.is_initialized():
            dist.destroy_process_group()

    def free_memory(self) -> None:
        """Free unused memory; engines hold reference cycles, so a garbage collection is needed."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def barrier(self) -> None:
        """Wait until every rank has reached this point."""
        if self.size > 1:
            self.sum(torch.zeros(1))  # unlike dist.barrier, prints no warning about devices

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum over ranks, as float64 on the CPU."""
        values = values.detach().to(self.device, torch.float64)
        if self.size > 1:
            dist.all_reduce(values)
        return values.cpu()

    def any(self, flag: object) -> bool:
        """Return True on every rank when `flag` is true on one."""
        return bool(self.sum(torch.tensor([float(bool(flag))])).item())

    def rank_indices(self, count: int) -> Iterator[tuple[int, bool]]:
        """Yield this rank's share of `count` pieces of work, as (index, whether it counts).

        Every rank gets equally many, since under ZeRO-3 each forward pass is collective; where they do not
        divide evenly, the last piece is repeated and does not count.
        """
        for start in range(0, count, self.size):
            index = start + self.rank
            yield min(index, count - 1), index < count

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather(self, items: list) -> list:
        """Concatenate the lists of all ranks, in rank order."""
        if self.size == 1:
            return items
        parts: list[list] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def main_process_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, then on the others, which find its downloads in the cache.

        An error on rank 0 is raised on every rank, so that none waits for a dead one.
        """
        if self.size == 1:
            return work()
        result, failure = _attempt(work if self.is_main else lambda: None)
        failure = self.broadcast(_picklable(failure))
        if failure is not None:
            raise failure
        return result if self.is_main else work()

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its result or exception."""
        result, failure = _attempt(work if self.is_main else lambda: None)
        if self.size > 1:
            result, failure = self.broadcast((result, _picklable(failure)))
        if failure is not None:
            raise failure
        return result

    def on_all_ranks(self, work: Callable[[], None]) -> None:
        """Run `work` on every rank; if it fails on some, raise the error of the lowest one on all."""
        _, failure = _attempt(work)
        failures = [failure] if self.size == 1 else self.all_gather([_picklable(failure)])
        if any(failures):
            raise next(filter(None, failures))


def _attempt(work: Callable[[], object]) -> tuple[Any, BaseException | None]:
    """Return (result, None), or (None, the error that was raised)."""
    try:
        return work(), None
    except (Exception, Stopped) as error:
        return None, error


def _picklable(error: BaseException | None) -> BaseException | None:
    """Return an error that can be pickled: itself, or a RunError with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}：{error}")
    return error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _follow_launcher() -> None:
    """End this rank when its launcher is gone: a killed `deepspeed` leaves its ranks running otherwise.

    SIGTERM first, so that a checkpoint is written; after GRACE_SECONDS the process exits, since the other
    ranks may be gone too and never take part in one.
    """
    import psutil

    launchers = []
    for parent in psutil.Process().parents():
        try:
            if not any(name in " ".join(parent.cmdline()) for name in LAUNCHERS):
                break
            launchers.append(parent)
        except psutil.Error:
            break

    def watch():
        while all(parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE for parent in launchers):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    if launchers:
        threading.Thread(target=watch, daemon=True, name="follow-launcher").start()
