"""The versions of the programs that move a process, for the record of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quicferry.errors import Unsupported
from quicferry.migration.container.oci_container import find_runc, is_crun
from quicferry.migration.criu.command import find_criu
from quicferry.process import find_program, run


def first_line(program: Path) -> str:
    """The first line of what ``program --version`` prints, empty when it prints nothing."""
    return next(iter(run([program, "--version"], check=False).stdout.splitlines()), "")


def criu_version(program: Path) -> str:
    """What ``criu --version`` calls itself, for example ``4.2.1``."""
    return first_line(program).removeprefix("Version: ") or "of unknown version"


def runc_version(program: Path) -> str:
    """What runc (or crun) calls itself with ``--version``, for example ``1.1.5+ds1``."""
    return _without_name(first_line(program)) or "of unknown version"


def name_and_version(program: Path) -> str:
    """Which runtime that is, for example ``runc 1.1.5+ds1`` or ``crun 1.28``."""
    return f"{'crun' if is_crun(program) else 'runc'} {runc_version(program)}"


def _without_name(line: str) -> str:
    return line.removeprefix("runc version ").removeprefix("crun version ")


def versions_of(programs: Iterable[str]) -> dict[str, str]:
    """The version of each program, by its name. Raises ``Unsupported`` for one that is not installed."""
    versions = {}
    for name in programs:
        if name == "criu":
            versions[name] = criu_version(find_criu())
        elif name == "runc":
            runc = find_runc()
            versions["crun" if is_crun(runc) else name] = runc_version(runc)
        elif (found := find_program(name)) is not None:
            versions[name] = first_line(found)
        else:
            raise Unsupported(f"the program {name} is not installed", hint="its engine says where to get it")
    return versions
