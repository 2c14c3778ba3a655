"""One rank of zero.py: makes steps in every stage and precision, and measures what DeepSpeed holds.

python benchmarks/zero_rank.py FILE WIDTH    # as one of several, with RANK, WORLD_SIZE and the like
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch
from harness import ROOT

# (precision, stage). training/deepspeed_config.py refuses stage 0 in bf16: its fp32 weights cannot be had.
CASES = [("fp32", 0), *((precision, stage) for precision in ("fp32", "bf16") for stage in (1, 2, 3))]
BASE = 768  # the width of a BERT of base size
ROWS, LENGTH = 2, 32  # of a forward pass
PASSES, STEPS = 2, 2  # backward passes a step; Adam has no state before the first step
KINDS = ("optimizer", "gradients", "parameters")


def storages(*things: object) -> dict[int, int]:
    """Bytes by address of the tensors in these things: each storage once, however many tensors share it."""
    found = {}
    for tensor in _tensors(things):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def _tensors(thing: object) -> Iterator[torch.Tensor]:
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        yield from _tensors(list(thing.values()))
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _tensors(part)


def live_storages() -> dict[int, int]:
    """Storages of all tensors that Python knows of since gc.freeze, and of their gradients: a second opinion,
    which knows nothing of DeepSpeed."""
    time.sleep(0.3)  # now and then a bucket that was just sent is let go of a moment later
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return storages(found, [tensor.grad for tensor in found if tensor.is_leaf])


def held_bytes(engine, inputs: dict[int, int]) -> dict[str, int]:
    """Bytes that are held now, by where DeepSpeed 0.19 holds them.

    Returns:
        KINDS; `copy`, what of the optimizer is a copy of the weights; `else`, all other tensors but inputs.
    """
    zero = inner = engine.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    weights = list(engine.wrapped.module.parameters())
    parameters = storages(weights, [getattr(weight, "ds_tensor", None) for weight in weights])
    owned = [  # what Adam steps: in stages 1 and 2, in stage 3
        *getattr(zero, "single_partition_of_fp32_groups", ()),
        *getattr(zero, "fp32_partitioned_groups_flat", ()),
    ]
    copy = {at: size for at, size in storages(owned).items() if at not in parameters}
    optimizer = copy | storages(list(inner.state.values()))
    names = ("averaged_gradients", "all_grad_tensors", "grads_in_partition", "grad_partitions_flat_buffer")
    gradients = storages(
        [weight.grad for weight in [*weights, *owned]],
        [getattr(weight, "grad_accum", None) for weight in weights],
        [getattr(zero, name, None) for name in names],
    )
    known, seen = parameters | optimizer | gradients, live_storages()
    if len(known) < len(parameters) + len(optimizer) + len(gradients) or known.keys() - seen.keys():
        raise SystemExit(
            "a storage of two kinds, or one that is not live: this DeepSpeed holds them elsewhere"
        )
    other = [size for at, size in seen.items() if at not in known and at not in inputs]
    sizes = [sum(found.values()) for found in (optimizer, gradients, parameters, copy)]
    return dict(zip((*KINDS, "copy", "else"), (*sizes, sum(other)), strict=True))


def build(world, precision: str, stage: int, width: int):
    """The project's engine, by its own configuration, around a BERT of base size that is `width` wide. Its
    vocabulary and its positions are fewer in the same measure: every tensor has the share of the whole that
    it has there, so the borders between ranks fall where they fall there."""
    from transformers import BertConfig, BertForMaskedLM

    from finetune.cli import train_args
    from finetune.training import deepspeed_config
    from finetune.training.deepspeed_engine import DeepSpeedEngine
    from finetune.training.engine import EngineConfig

    config = deepspeed_config.read(ROOT / train_args.DEFAULT_DEEPSPEED_CONFIG)
    config["zero_optimization"]["stage"] = stage
    batch = ROWS * PASSES * world.size
    settings = deepspeed_config.Settings(batch, ROWS, world.size, 1.0, precision, 1e-4, 0.01, 0, STEPS)
    resolved = deepspeed_config.resolve(config, settings, width, train_args.DEFAULT_DEEPSPEED_CONFIG)
    shape = {
        "vocab_size": 21128 * width // BASE, "max_position_embeddings": 512 * width // BASE,
        "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**shape))
    count = sum(weight.numel() for weight in model.parameters())
    engine_config = EngineConfig(1e-4, 0.01, 1.0, 0, precision, ROWS, PASSES)
    return DeepSpeedEngine(model, world, engine_config, resolved), count


def measure(world, precision: str, stage: int, width: int) -> dict:
    """Memory of this rank after each backward pass of the last step, and the model's number of weights."""
    from finetune.objectives.batching import Example, collate

    gc.collect()
    gc.freeze()  # what is there already is nobody's here, and need not be looked through
    engine, count = build(world, precision, stage, width)
    rng = random.Random(world.rank)
    rows = [tuple(rng.randrange(5, 1000) for _ in range(LENGTH)) for _ in range(ROWS)]
    batches = [collate([Example(row, (3,), (row[3],), by_token=True) for row in rows], 0)] * PASSES
    inputs = storages([vars(batch) for batch in batches])
    for number in range(STEPS - 1):
        engine.step(batches, number, 1e-4)
    passes: list[dict] = []
    step = engine.wrapped.step  # called after every backward pass; after the last it updates, and frees

    def watched():
        passes.append(held_bytes(engine, inputs))
        return step()

    engine.wrapped.step = watched
    engine.step(batches, STEPS - 1, 1e-4)
    engine.close()
    return {"precision": precision, "stage": stage, "weights": count, "passes": passes}


def main(file: str, width: str) -> None:
    from finetune.runtime.console import exit_process
    from finetune.runtime.distributed import Distributed

    world = Distributed.init(cpu=True, force_group=True)
    found = [measure(world, *case, int(width)) for case in CASES]
    Path(file).write_text(json.dumps(found), encoding="utf-8")
    world.shutdown()
    exit_process(0)  # a thread of gloo may abort a process that ends in the usual way


if __name__ == "__main__":
    main(*sys.argv[1:])
