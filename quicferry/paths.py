"""Where this checkout is: the tool runs from its checkout, and finds its own programs and data in it."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
RUNS = CHECKOUT / "runs"
PROVISION = CHECKOUT / "provision"
