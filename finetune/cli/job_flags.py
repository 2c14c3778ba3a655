"""Flags that a job of inference.py has no use for."""

from __future__ import annotations

from finetune.cli.inference_args import InferenceArgs

ALWAYS = {"model_path", "allow_pickle", "cpu", "precision", "local_rank", "json", "debug"}  # of every job


def idle_flags(args: InferenceArgs, used: set[str]) -> dict[str, str]:
    """Return the flags that were given and are not `used`: name -> the flag with its value, for messages."""
    return {name: f"--{name}{_value(args, name)}" for name in sorted(args.given - used - ALWAYS)}


def _value(args: InferenceArgs, name: str) -> str:
    """Return the value of a flag for a message; "" of a switch."""
    value = getattr(args, name)
    if isinstance(value, bool) or value is None:
        return ""
    return " " + (" ".join(map(str, value)) if isinstance(value, list) else str(value))
