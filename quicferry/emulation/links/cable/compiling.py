"""Which functions are compiled to machine code, and the system calls that those may make.

The rules and the loop of the cable are Python that Numba can compile. Where the project runs they are not
touched by Numba, whose import and start take longer than a whole network: ``native`` compiles them once, in a
process of its own in which ``COMPILING`` is set, and keeps the machine code. As plain Python they can be
called too, but for those that make system calls.

Lanes are records: ``lane["delay_ns"]`` means the same to Numba and to NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

COMPILING = "QUICFERRY_COMPILES_THE_CABLE"

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """A function that compiled code may call. Divisions are the processor's: nothing is raised."""
    if COMPILING not in os.environ:
        return function
    import numba

    return cast("F", numba.njit(error_model="numpy")(function))


def system_call(name: str, *arguments: str) -> Callable[..., int]:
    """A function of the C library that returns an int. Its arguments: ``int``, ``size`` or ``pointer``."""
    if COMPILING not in os.environ:

        def refuse(*_: int) -> int:
            raise NotImplementedError(f"{name} is called by compiled code only")

        return refuse
    from numba.core import types
    from numba.core.typing.templates import signature

    kinds = {"int": types.int32, "size": types.uintp, "pointer": types.uintp}
    call: Callable[..., int] = types.ExternalFunction(
        name, signature(types.int32, *(kinds[kind] for kind in arguments))
    )
    return call
