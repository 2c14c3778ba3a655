"""DeepSpeed's checkpoint files: read without running what is in them, cut anew for another number of ranks,
and written so that a full disk is an error of all ranks and not a rank that the others wait for.

DeepSpeed writes pickles, one a rank, and unpickles whatever they hold. `ZeroFiles` stands in the place of its
checkpoint engine and lets through tensors, plain values and the four kinds of objects DeepSpeed itself puts
there. The optimizer's state lies in flat partitions: of a whole group of parameters in stages 1 and 2, of
each parameter by itself in stage 3 (ZeRO, arXiv:1910.02054, sections 5 and 6).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.runtime.console import first_line
from finetune.runtime.errors import UserError

OF_RANK = re.compile(r"zero_pp_rank_(\d+)_")
OPTIMIZER, FROZEN = "optimizer_state_dict", "frozen_param_fragments"


def _known() -> list:
    """The objects that DeepSpeed puts among the tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum]


def read_strictly(path: str | Path) -> dict:
    """One file, on the CPU.

    Raises:
        UserError: it holds something that would run as a program, or is no such file.
    """
    with torch.serialization.safe_globals(_known()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"{path}：檢查點少了這個檔案") from error
        except Exception as error:  # a pickle can be wrong in any way
            why = first_line(error)[:200]
            raise UserError(
                f"{path}：裡面有張量以外的東西，讀進來可能執行外來的程式，不載入（{type(error).__name__}：{why}）"
            ) from error


class ZeroFiles:
    """Stands in the place of DeepSpeed's checkpoint engine.

    Args:
        engine: DeepSpeed's engine.
        rank, size: of this process, among how many.

    `failed`: what went wrong in writing. It is kept, not raised: DeepSpeed makes all ranks meet after they
    have written, and one that is not there is waited for.
    """

    def __init__(self, engine, rank: int, size: int):
        self.engine, self.rank, self.size = engine, rank, size
        self.failed: Exception | None = None
        self._theirs = engine.checkpoint_engine

    def __getattr__(self, name: str):
        return getattr(self._theirs, name)

    def save(self, state_dict: dict, path: str) -> None:
        try:
            self._theirs.save(state_dict, path)
        except Exception as error:
            self.failed = error

    def load(self, path: str, map_location=None) -> dict:
        """As DeepSpeed's own, from the files of any number of ranks."""
        path = Path(path)
        then = len(list(path.parent.glob("[!.]*_optim_states.pt"))) or self.size  # stage 0 has none
        if then == self.size:
            return read_strictly(path)
        if not path.name.endswith("optim_states.pt"):
            there = OF_RANK.sub(lambda found: f"zero_pp_rank_{int(found[1]) % then}_", path.name)
            # Frozen weights are those of the base, which stand in the model already.
            return read_strictly(path.with_name(there)) | {"dp_world_size": self.size, FROZEN: None}
        parts = [
            read_strictly(path.with_name(OF_RANK.sub(f"zero_pp_rank_{rank}_", path.name)))
            for rank in range(then)
        ]
        return parts[0] | {OPTIMIZER: self._recut([part[OPTIMIZER] for part in parts])}

    def _recut(self, parts: list[dict]) -> dict:
        """The optimizer's state of this rank out of those of all ranks that wrote it."""
        optimizer, mine = self.engine.optimizer, dict(parts[0])
        if "fp32_flat_groups" in mine:
            inner, weights = "optimizer_state_dict", "fp32_flat_groups"
            shapes = [[weight.ds_numel for weight in group] for group in optimizer.fp16_groups]

            def cut(number: int, flats: list[Tensor]) -> Tensor:
                return recut_each(flats, shapes[number], self.rank, self.size)
        else:
            inner, weights = "base_optimizer_state", "single_partition_of_fp32_groups"
            sizes = [flat.numel() for flat in optimizer.single_partition_of_fp32_groups]

            def cut(number: int, flats: list[Tensor]) -> Tensor:
                return recut_whole(flats, sizes[number], self.rank)

        count = len(mine[weights])
        mine[weights] = [cut(number, [part[weights][number] for part in parts]) for number in range(count)]
        states = {
            number: {
                key: cut(number, [part[inner]["state"][number][key] for part in parts])
                if value.dim()
                else value  # how many steps
                for key, value in state.items()
            }
            for number, state in mine[inner]["state"].items()
        }
        mine[inner] = {**mine[inner], "state": states}
        if "partition_count" in mine:
            counts = mine["partition_count"]
            mine["partition_count"] = [self.size] * len(counts) if isinstance(counts, list) else self.size
        return mine


def recut_whole(flats: Sequence[Tensor], size: int, rank: int) -> Tensor:
    """Stages 1 and 2: (size,), the partition of `rank` of the flats of all former ranks, one after another.
    What is past their end is padding.
    """
    whole = torch.cat(list(flats))
    mine = whole.new_zeros(size)
    found = whole[rank * size : (rank + 1) * size]
    mine[: len(found)] = found
    return mine


def recut_each(flats: Sequence[Tensor], numels: Sequence[int], rank: int, size: int) -> Tensor:
    """Stage 3: each parameter is cut by itself, into as many equal parts as there are ranks, the last one
    padded; a flat is the parts of one rank.

    Args:
        numels: of the parameters, in the order of the flats.
    """
    mine, at = [], 0
    for numel in numels:
        then, now = math.ceil(numel / len(flats)), math.ceil(numel / size)
        whole = torch.cat([flat[at : at + then] for flat in flats])[:numel]
        at += then
        mine.append(recut_whole([whole], now, rank))
    return torch.cat(mine) if mine else flats[0][:0]
