"""The names of what a strength does, and of its unit; `steer.py` has their meaning."""

from __future__ import annotations

from typing import Literal

SteerMode = Literal["scale", "set", "add", "zero", "scale_logits", "toward"]
Unit = Literal["raw", "usual"]

#: Of everything that steers. The other modes edit what the model thinks its current token is.
DEFAULT_MODE: SteerMode = "toward"
