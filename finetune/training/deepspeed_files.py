"""DeepSpeed's checkpoint files: read without running code in them, and repartitioned for other world sizes.

DeepSpeed writes pickles, one per rank, and unpickles whatever they hold. `ZeroFiles` replaces its checkpoint
engine and accepts tensors, plain values and the four classes that DeepSpeed itself pickles. It also keeps
errors of writing, so that a full disk is an error on all ranks and not a rank that the others wait for.

The optimizer's state lies in flat partitions: of a whole group of parameters in stages 1 and 2, of each
parameter by itself in stage 3 (ZeRO, arXiv:1910.02054, sections 5 and 6).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.runtime.console import first_line
from finetune.runtime.errors import UserError

OF_RANK = re.compile(r"zero_pp_rank_(\d+)_")
OPTIMIZER, FROZEN = "optimizer_state_dict", "frozen_param_fragments"


def _known_classes() -> list[Any]:
    """Return the classes that DeepSpeed pickles among the tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum]


def read_strictly(path: str | Path) -> dict[str, Any]:
    """Read one file to the CPU, without running anything in it.

    Raises:
        UserError: there is no such file, it is damaged, or it holds other objects than DeepSpeed's.
    """
    with torch.serialization.safe_globals(_known_classes()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"{path}：檢查點少了這個檔案") from error
        except Exception as error:  # a damaged pickle raises anything
            why = first_line(error)[:200]
            raise UserError(
                f"{path}：裡面有張量以外的東西，讀進來可能執行外來的程式，不載入（{type(error).__name__}：{why}）"
            ) from error


class ZeroFiles:
    """Replacement of DeepSpeed's checkpoint engine.

    Args:
        engine: DeepSpeed's engine.
        rank: this process's rank.
        size: number of ranks.

    `failed` is the error of writing, if any. It is kept and not raised, since DeepSpeed waits after writing
    until all ranks are there.
    """

    def __init__(self, engine: Any, rank: int, size: int):
        self.engine, self.rank, self.size = engine, rank, size
        self.failed: Exception | None = None
        self._replaced = engine.checkpoint_engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced, name)

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one file, as DeepSpeed's own engine does; an error is kept in `failed`."""
        try:
            self._replaced.save(state_dict, path)
        except Exception as error:
            self.failed = error

    def load(self, path: str, map_location: object = None) -> dict[str, Any]:
        """Read one file of this rank from a checkpoint that any number of ranks wrote.

        Raises:
            UserError: see `read_strictly`.
        """
        file = Path(path)
        ranks_then = len(list(file.parent.glob("[!.]*_optim_states.pt"))) or self.size  # stage 0 has none
        if ranks_then == self.size:
            return read_strictly(file)
        if not file.name.endswith("optim_states.pt"):
            name = OF_RANK.sub(lambda match: f"zero_pp_rank_{int(match[1]) % ranks_then}_", file.name)
            # Frozen weights are those of the base model, which are loaded already.
            return read_strictly(file.with_name(name)) | {"dp_world_size": self.size, FROZEN: None}
        parts = [
            read_strictly(file.with_name(OF_RANK.sub(f"zero_pp_rank_{rank}_", file.name)))
            for rank in range(ranks_then)
        ]
        return parts[0] | {OPTIMIZER: self._repartition([part[OPTIMIZER] for part in parts])}

    def _repartition(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the optimizer state of this rank, from those of all ranks that wrote it."""
        optimizer, result = self.engine.optimizer, dict(parts[0])
        if "fp32_flat_groups" in result:
            inner, weights = "optimizer_state_dict", "fp32_flat_groups"
            shapes = [[weight.ds_numel for weight in group] for group in optimizer.fp16_groups]

            def cut(number: int, flats: list[Tensor]) -> Tensor:
                return repartition_by_parameter(flats, shapes[number], self.rank, self.size)
        else:
            inner, weights = "base_optimizer_state", "single_partition_of_fp32_groups"
            sizes = [flat.numel() for flat in optimizer.single_partition_of_fp32_groups]

            def cut(number: int, flats: list[Tensor]) -> Tensor:
                return repartition_flat(flats, sizes[number], self.rank)

        count = len(result[weights])
        result[weights] = [cut(number, [part[weights][number] for part in parts]) for number in range(count)]
        states = {
            number: {
                key: cut(number, [part[inner]["state"][number][key] for part in parts])
                if value.dim()
                else value  # the count of steps
                for key, value in state.items()
            }
            for number, state in result[inner]["state"].items()
        }
        result[inner] = {**result[inner], "state": states}
        if "partition_count" in result:
            counts = result["partition_count"]
            result["partition_count"] = [self.size] * len(counts) if isinstance(counts, list) else self.size
        return result


def repartition_flat(flats: Sequence[Tensor], size: int, rank: int) -> Tensor:
    """Return the partition of `rank`, (size,), as stages 1 and 2 cut the concatenation of all flats.

    Args:
        flats: partitions of all former ranks, in order.
        size: elements of a new partition; what is past the end of the flats is padding.
    """
    whole = torch.cat(list(flats))
    partition = whole.new_zeros(size)
    values = whole[rank * size : (rank + 1) * size]
    partition[: len(values)] = values
    return partition


def repartition_by_parameter(flats: Sequence[Tensor], numels: Sequence[int], rank: int, size: int) -> Tensor:
    """Return the partition of `rank` as stage 3 cuts it: each parameter by itself.

    A parameter is cut into as many equal parts as there are ranks, the last one padded; the partition of a
    rank is its parts of all parameters.

    Args:
        flats: partitions of all former ranks, in order.
        numels: elements of each parameter, in the order of the flats.
        size: number of ranks now.
    """
    parts, start = [], 0
    for numel in numels:
        length_then, length_now = math.ceil(numel / len(flats)), math.ceil(numel / size)
        whole = torch.cat([flat[start : start + length_then] for flat in flats])[:numel]
        start += length_then
        parts.append(repartition_flat([whole], length_now, rank))
    return torch.cat(parts) if parts else flats[0][:0]
