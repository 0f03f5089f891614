"""Compiles the cable's rules and its loop: ``python -m quicferry.emulation.links.cable.compile FILE``.

Numba makes functions with C's calling convention of them, LLVM makes machine code of that, and it is written
to the file. What they are given is the address of a table of numbers, four for each array of
``memory.Cable``: its address and its lengths. ``native`` writes that table, and this module writes the code
that reads it.

The code is for a processor without extensions: it gains nothing from them, and so runs on each machine that
shares the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from quicferry.emulation.links.cable.compiling import COMPILING

os.environ[COMPILING] = "1"
os.environ["NUMBA_CPU_NAME"] = "generic"


def object_code() -> bytes:
    """The machine code: an ELF object with the functions that ``native.FUNCTIONS`` names."""
    import llvmlite.binding as llvm
    import numba
    import numpy as np
    from numba.core import types
    from numba.extending import intrinsic

    from quicferry.emulation.links.cable import fate, loop, memory
    from quicferry.emulation.links.cable.lanes import Lanes
    from quicferry.emulation.links.cable.native import FUNCTIONS, parts

    def pointer_to(dtype: Any) -> Any:
        kind = types.CPointer(numba.from_dtype(dtype))

        @intrinsic
        def pointer(_: Any, address: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

            return kind(address), generate

        return pointer

    lanes = Lanes([], mtu_bytes=[])
    example = memory.lay_out(lanes.table, epoll=0, lane_of=np.zeros(1, np.int64))
    names: dict[str, Any] = {"carray": vars(numba)["carray"]}
    number = iter(range(1000))

    def source(structure: Any) -> str:
        """An expression that builds such a structure from ``rows``."""
        if hasattr(structure, "_fields"):
            kind = type(structure).__name__
            names[kind] = type(structure)
            return f"{kind}({', '.join(source(part) for part in structure)})"
        row = next(number)
        if not isinstance(structure, np.ndarray):
            return f"rows[{row}, 0]"
        pointer = f"pointer_{row}"
        names[pointer] = pointer_to(structure.dtype)
        lengths = "".join(f"rows[{row}, {1 + axis}], " for axis in range(structure.ndim))
        return f"carray({pointer}(rows[{row}, 0]), ({lengths}))"

    rows_shape = f"({len(parts(example))}, 4)"
    text = f"def opened(address):\n rows = carray(address, {rows_shape})\n return {source(example)}\n"
    exec(compile(text, "<opened>", "exec"), names)  # noqa: S102
    opened = numba.njit(names["opened"])
    carry, schedule = loop.carry, fate.schedule

    def carry_all(address: Any) -> int:
        return carry(opened(address))

    def decide(address: Any, number: int, arrival_ns: int, wire_bytes: int, packets: int) -> int:
        table = opened(address).table
        return schedule(table, table.lanes[number], arrival_ns, wire_bytes, packets)

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=3, reloc="pic", codemodel="default")
    rows, integer = types.CPointer(types.int64), types.int64
    whole = None
    for name, function, arguments in (
        ("carry", carry_all, (rows,)),
        ("decide", decide, (rows, integer, integer, integer, integer)),
    ):
        made = numba.cfunc(integer(*arguments), error_model="numpy")(function)
        module = llvm.parse_assembly(made.inspect_llvm().replace(made.native_name, FUNCTIONS[name]))
        if whole is None:
            whole = module
        else:
            whole.link_in(module)
    assert whole is not None
    code: bytes = machine.emit_object(whole)
    return code


def main() -> None:
    """Compile, and write the file so that a reader finds all of it or nothing."""
    path = Path(sys.argv[1])
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(object_code())
    fresh.replace(path)


if __name__ == "__main__":
    main()
