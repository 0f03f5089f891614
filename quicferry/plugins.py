"""Entries that come from outside of this distribution: engines, baselines, topologies and the like.

There are two ways to bring one:

- A *package* that is installed beside quicferry names it in its metadata, as an entry point of the group
  ``quicferry.engines``, ``quicferry.baselines``, ``quicferry.topologies``, ``quicferry.workloads`` or
  ``quicferry.strategies``: ``my-engine = "my_package.engines:ENTRY"``. What is loaded is one entry, or a
  tuple of them.
- A *file or package directory* is named in the environment variable ``QUICFERRY_PLUGINS`` (several are
  separated by ``os.pathsep``). It has tuples of entries named after the groups: ``ENGINES``, ``BASELINES``,
  ``TOPOLOGIES``, ``WORKLOADS``, ``STRATEGIES``, each of which may be missing.

A module of the second kind is imported once, under the name of its file (``/home/me/my_engine.py`` is
``my_engine``), and its folder is put at the end of ``sys.path`` and of ``PYTHONPATH``. So its entries may
name things as ``"my_engine:MyEngine"``, other modules of the folder can be imported, and all of it works
in child processes, too (agents, servers, ``python -m my_engine``): they inherit the environment.
Whatever else lies in that folder becomes importable with it, but never in place of an installed module.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from quicferry.errors import InvalidInput

VARIABLE = "QUICFERRY_PLUGINS"
PREFIX = "quicferry."
#: Every group of entry points; a module has the group's last word in capitals as the name of its tuple.
GROUPS = tuple(PREFIX + name for name in ("engines", "baselines", "topologies", "workloads", "strategies"))

T = TypeVar("T")


class Offer(NamedTuple):
    """One entry and where it comes from, for messages: a package's name or a file's path."""

    entry: Any
    origin: str


def paths() -> list[Path]:
    """The files and package directories that ``QUICFERRY_PLUGINS`` names, absolute, in its order."""
    words = os.environ.get(VARIABLE, "").split(os.pathsep)
    return list(dict.fromkeys(Path(word).absolute() for word in words if word))


def folders() -> list[Path]:
    """The folders that must be readable wherever a plug-in's code runs, such as in a server's container."""
    return list(dict.fromkeys(path.parent for path in paths()))


def entries(group: str, kind: type[T]) -> list[tuple[T, str]]:
    """All entries of a group from outside, each with its origin: installed packages first, then files.

    ``group`` is one of ``GROUPS``, ``kind`` the type that an entry must have. Raises ``InvalidInput``,
    which names the package or file, for one that cannot be loaded or is something else.
    """
    offers = [*_from_packages(group)]
    for path in paths():
        module = load(path)
        offers += [Offer(entry, str(path)) for entry in _tuple_of(module, group, path)]
    for entry, origin in offers:
        if not isinstance(entry, kind):
            raise InvalidInput(
                f"the plug-in {origin} offers {entry!r} as one of {group}",
                hint=f"an entry is an object of the class {kind.__module__}.{kind.__name__}",
            )
    return [(entry, origin) for entry, origin in offers]


def table(group: str, kind: type[T], own: Iterable[T], name_of: Callable[[T], str]) -> dict[str, T]:
    """The entries of this distribution and those from outside, by name.

    Raises ``InvalidInput`` as ``entries`` does, and when a name is taken twice.
    """
    origins: dict[str, str] = {}
    found: dict[str, T] = {}
    for entry, origin in [*((each, "quicferry itself") for each in own), *entries(group, kind)]:
        name = name_of(entry)
        if name in found:
            raise InvalidInput(
                f"{origin} offers {name!r} as one of {group}, and so does {origins[name]}",
                hint="give one of them another name, or leave one plug-in out",
            )
        found[name], origins[name] = entry, origin
    return found


def _tuple_of(module: ModuleType, group: str, path: Path) -> tuple[Any, ...]:
    name = group.removeprefix(PREFIX).upper()
    offered = getattr(module, name, ())
    if not isinstance(offered, tuple):
        raise InvalidInput(f"{name} of the plug-in {path} is no tuple", hint=f"write {name} = (ENTRY,)")
    return offered


def load(path: Path) -> ModuleType:
    """Import a plug-in's module, or return it when it was imported before. Raises ``InvalidInput``.

    ``path`` is a Python file or a package directory. The name of the module is that of the file or directory.
    """
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file() or source.suffix != ".py":
        raise InvalidInput(
            f"there is no plug-in {path}",
            hint=f"name a Python file, or a directory with an __init__.py; {VARIABLE} or --plugin has it",
        )
    name = path.stem
    if not name.isidentifier():
        raise InvalidInput(f"the plug-in {path} cannot be imported", hint="its name must be an identifier")
    _make_importable(path.parent)
    try:
        # find_spec looks into sys.modules first: a module that runs now has its own file there
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != source.resolve():
        where = spec.origin if spec is not None and spec.origin is not None else "Python itself"
        raise InvalidInput(
            f"the plug-in {path} cannot be imported as {name}: that is {where}",
            hint="give its file another name",
        )
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a stranger's module raises, its reader needs the file's name
        raise _broken(str(path), error) from error


def _make_importable(folder: Path) -> None:
    """Put a folder at the end of the search path of this process and of its children."""
    word = str(folder)
    if word not in sys.path:
        sys.path.append(word)
        importlib.invalidate_caches()
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if word not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, inherited), word])


@functools.cache
def _from_packages(group: str) -> tuple[Offer, ...]:
    """What installed packages offer. Cached: the packages do not change while a process runs."""
    offers: list[Offer] = []
    for point in sorted(entry_points(group=group), key=lambda each: (_package_of(each), each.name)):
        try:
            loaded = point.load()
        except Exception as error:  # as for a file
            raise _broken(f"{_package_of(point)} ({point.value})", error) from error
        offers += [Offer(entry, _package_of(point)) for entry in _as_tuple(loaded)]
    return tuple(offers)


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _as_tuple(loaded: object) -> tuple[Any, ...]:
    # a NamedTuple is one entry
    return loaded if type(loaded) is tuple else (loaded,)


def _broken(origin: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"the plug-in {origin} cannot be loaded: {type(error).__name__}: {error}",
        hint="mend it, or leave it out",
    )
