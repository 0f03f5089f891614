"""The compiled loop and rules of the cable: compiled when they are first needed, then loaded from a file.

The file is in the checkout's ``.cache``, or where that cannot be written in the user's. Its name changes with
the source and the versions of what compiles it. LLVM (llvmlite) loads it in less than a tenth of a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quicferry import process
from quicferry.emulation.links.cable.lanes import Int64s
from quicferry.emulation.links.cable.memory import Cable
from quicferry.errors import EmulationError
from quicferry.paths import CHECKOUT

#: The functions of the compiled file, and their symbols in it.
FUNCTIONS = {"carry": "quicferry_carry", "decide": "quicferry_decide"}
COMPILED_WITHIN_S = 300.0
_SOURCES = ("compile", "compiling", "due", "fate", "lanes", "lateness", "loop", "memory", "packets")

_NEVER_CALLED = (
    *("NRT_Free", "NRT_MemInfo_call_dtor", "numba_do_raise", "numba_gil_ensure", "numba_gil_release"),
    *("numba_runtime_build_excinfo_struct", "numba_unpickle"),
)


class Native:
    """The compiled functions. Each is given the ``table_of`` its cable."""

    def __init__(self, code: bytes) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        # What Numba's code calls when it has raised an exception, or counted an array's users down to none.
        # This code does neither: its arrays are Python's.
        abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
        for name in _NEVER_CALLED:
            llvm.add_symbol(name, abort)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        number, address = ctypes.c_int64, ctypes.c_void_p

        def function(name: str, *arguments: Any) -> Any:
            at = self._engine.get_function_address(FUNCTIONS[name])
            return ctypes.PYFUNCTYPE(number, *arguments)(at)

        self.carry = function("carry", address)
        self.decide = function("decide", address, number, number, number, number)


def parts(structure: Any) -> list[Any]:
    """All arrays and numbers of a structure, in the order of their fields."""
    return list(_leaves(structure))


def _leaves(structure: Any) -> Iterator[Any]:
    if not hasattr(structure, "_fields"):
        yield structure
        return
    for part in structure:
        yield from _leaves(part)


def table_of(cable: Cable) -> Int64s:
    """What the compiled functions are given: for each array its address and lengths, for a number itself."""
    found = parts(cable)
    rows = np.zeros((len(found), 4), np.int64)
    for row, part in zip(rows, found, strict=True):
        if isinstance(part, np.ndarray):
            row[0] = part.ctypes.data
            row[1 : 1 + part.ndim] = part.shape
        else:
            row[0] = part
    return rows


@functools.cache
def load() -> Native:
    """The compiled functions. Raises ``EmulationError`` as ``prepared`` does."""
    return Native(prepared().read_bytes())


@functools.cache
def prepared() -> Path:
    """The compiled file. Where nobody has compiled it that is done now, which takes ten seconds and more.

    Raises ``EmulationError`` when it cannot be.
    """
    if (path := found()) is not None:
        return path
    name = _name()
    for folder in _places():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # of several that need it one compiles, and the others wait
            with (folder / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / name).exists():
                    _compile(folder / name)
            return folder / name
    raise EmulationError(
        "there is no place for the compiled cable", hint=f"make {_places()[-1]} a folder that can be written"
    )


def found() -> Path | None:
    """The compiled file, where somebody has compiled it."""
    return next((path for folder in _places() if (path := folder / _name()).exists()), None)


def _places() -> list[Path]:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return [CHECKOUT / ".cache" / "cable", Path(cache).expanduser() / "quicferry"]


@functools.cache
def _name() -> str:
    """Changes with everything that the compiled file depends on."""
    seen = hashlib.sha256()
    for name in _SOURCES:
        seen.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    for package in ("llvmlite", "numba"):
        seen.update(importlib.metadata.version(package).encode())
    seen.update(platform.machine().encode())
    return f"cable-{seen.hexdigest()[:16]}.o"


def _compile(path: Path) -> None:
    done = process.run(
        [sys.executable, "-m", "quicferry.emulation.links.cable.compile", path],
        check=False,
        timeout_s=COMPILED_WITHIN_S,
    )
    if not path.exists():
        said = done.stderr.strip().splitlines()
        raise EmulationError(
            f"the cable cannot be compiled: {said[-1] if said else f'status {done.status}'}",
            hint="make setup installs Numba as it was tried; netem needs no cable",
        )


if __name__ == "__main__":
    prepared()
