"""What a worker does in a test instead of a run: it writes a run directory, or waits until it is killed."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import msgspec

from quicferry.errors import InvalidInput
from quicferry.record import RunPaths
from quicferry.spec import RunSpec
from session.remote import pack
from tests.pure.session.sweep_support import run_directory

#: the run of this seed waits for the file that this variable names, on whichever worker has it first
WAITING_SEED, REFUSED_SEED = 2, 77
MARK = "QUICFERRY_TEST_MARK"


def make_directory(asked: bytes, conditions: dict[str, str]) -> bytes:
    """Write a run directory for what is asked."""
    spec = msgspec.json.decode(asked, type=RunSpec)
    if spec.seed == REFUSED_SEED:
        raise InvalidInput("this worker is another machine", hint="leave it out")
    mark = Path(os.environ[MARK])
    if spec.seed == WAITING_SEED and not mark.exists():
        mark.write_text(str(os.getpid()))
        time.sleep(60)  # it is killed meanwhile
    with tempfile.TemporaryDirectory() as folder:
        result = run_directory(Path(folder), spec, number=time.monotonic_ns())
        RunPaths(Path(result.run_dir or "")).events.write_text(f"{os.getpid()}\n")
        return pack(result)
