"""Protocols: how an exam is asked, answered and added up, each in one small file of `prompts/protocols`."""

from __future__ import annotations

OURS = "ours"
PROTOCOLS = (OURS, "lm-eval", "ievals", "twinkle-box", "twinkle-logit")
