"""Plug-ins: files, packages, what is wrong with them, and an engine that works by its entry."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import baselines
from apps.client import workloads
from quicferry import plugins
from quicferry.errors import InvalidInput
from quicferry.migration.engines import registry
from quicferry.migration.engines.registry import EngineEntry
from quicferry.paths import CHECKOUT
from session.request import to_spec
from tests.specs import needs_with

ENGINE = """
from quicferry.migration.engines.registry import CriuVariant, EngineEntry

class Teleport:
    name = "teleport"

    def __init__(self, context):
        self.context = context

ENGINES = (
    EngineEntry(
        name="teleport", title="Beams the server over.", implementation=f"{__name__}:Teleport",
        needs=("beam",), copies_ahead=True, runs_in_oci=True,
        by_criu=CriuVariant(implementation=f"{__name__}:Missing", needs=("criu-tracking",)),
    ),
)
"""


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose plug-ins are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv(plugins.VARIABLE, "")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    plugins._from_packages.cache_clear()


def offer(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    given = path.parent if path.name == "__init__.py" else path
    known = os.environ[plugins.VARIABLE]
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join(filter(None, [known, str(given)])))
    return given


def test_without_plugins_there_are_our_engines(offered: Path) -> None:
    assert list(registry.engines()) == [entry.name for entry in registry.OWN]
    assert (plugins.paths(), plugins.folders()) == ([], [])


@pytest.mark.parametrize("place", ["teleporter_a.py", "teleporter_b/__init__.py"])
def test_an_engine_works_by_its_entry_alone(
    offered: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = offer(monkeypatch, offered / place, ENGINE)
    assert list(registry.engines())[-1] == "teleport"
    assert "teleport" in registry.ahead_engines() & registry.long_engines()
    assert "teleport" not in registry.behind_engines() | registry.criu_engines()
    assert registry.runs_in_oci("teleport")
    assert "beam" in needs_with(engine="teleport")
    assert {"beam", "criu-tracking"} <= set(needs_with(engine="teleport", memory_by="criu"))
    assert to_spec({"engine": "teleport", "memory_by": "criu"}).engine == "teleport"
    context: object = object()
    assert registry.create("teleport", context).context is context  # type: ignore[arg-type, attr-defined]
    with pytest.raises(InvalidInput, match=r"cannot be loaded from teleporter_.:Missing"):
        registry.create("teleport/criu", context)  # type: ignore[arg-type]
    assert plugins.folders() == [path.parent]


def test_a_child_process_finds_the_module_by_its_name(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents and servers are ``python -m …`` of their own: they inherit the environment and nothing else."""
    offer(
        monkeypatch,
        offered / "teleporter_c.py",
        ENGINE + "\nif __name__ == '__main__':\n    print('beamed')\n",
    )
    registry.engines()
    done = subprocess.run([sys.executable, "-m", "teleporter_c"], capture_output=True, text=True, check=True)
    assert done.stdout == "beamed\n"
    words = "from quicferry.migration.engines.registry import engines; print(*engines())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "teleport"


def test_a_module_is_loaded_once(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = offer(monkeypatch, offered / "teleporter_d.py", ENGINE)
    first = registry.engines()["teleport"]
    assert registry.engines()["teleport"] is first
    assert plugins.load(path) is sys.modules["teleporter_d"]
    offer(monkeypatch, path, ENGINE)  # named twice
    assert list(registry.engines()).count("teleport") == 1


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("wrong_syntax.py", "ENGINES = (", r"wrong_syntax\.py cannot be loaded: SyntaxError"),
        (
            "wrong_import.py",
            "import no_such_thing",
            r"wrong_import\.py cannot be loaded: ModuleNotFoundError",
        ),
        ("wrong_list.py", "ENGINES = []", r"ENGINES of the plug-in .*wrong_list\.py is no tuple"),
        (
            "wrong_type.py",
            "ENGINES = ('teleport',)",
            r"wrong_type\.py offers 'teleport' as one of quicferry\.eng",
        ),
        ("wrong-name.py", "ENGINES = ()", r"wrong-name\.py cannot be imported"),
        ("json.py", "ENGINES = ()", r"cannot be imported as json: that is .*json/__init__\.py"),
    ],
)
def test_a_broken_plugin_is_named(
    offered: Path, monkeypatch: pytest.MonkeyPatch, place: str, text: str, message: str
) -> None:
    offer(monkeypatch, offered / place, text)
    with pytest.raises(InvalidInput, match=message) as caught:
        registry.engines()
    assert caught.value.hint


@pytest.mark.parametrize("place", ["missing.py", "folder"])
def test_a_plugin_must_be_there(offered: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(offered / place))
    with pytest.raises(InvalidInput, match=rf"there is no plug-in .*/{place}"):
        registry.engines()


def test_a_name_is_taken_once(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, offered / "again_a.py", ENGINE.replace("teleport", "handoff"))
    with pytest.raises(InvalidInput, match=r"again_a\.py offers 'handoff' .* so does quicferry itself"):
        registry.engines()
    monkeypatch.setenv(plugins.VARIABLE, "")
    offer(monkeypatch, offered / "again_b.py", ENGINE)
    offer(monkeypatch, offered / "again_c.py", ENGINE)
    with pytest.raises(InvalidInput, match=r"again_c\.py offers 'teleport' .* so does .*again_b\.py"):
        registry.engines()


class Point:
    """An entry point of an installed package."""

    def __init__(self, loaded: object) -> None:
        self.name, self.value = "x", "their_module:ENTRY"
        self.dist = SimpleNamespace(name="their-package")
        self._loaded = loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def test_packages_offer_entries(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*loaded: object) -> None:
        plugins._from_packages.cache_clear()
        monkeypatch.setattr(plugins, "entry_points", lambda group: [Point(each) for each in loaded])

    entry = EngineEntry(name="theirs", title="Theirs.", implementation="their_module:Engine")
    install(entry)
    assert plugins.entries(registry.GROUP, EngineEntry) == [(entry, "their-package")]
    assert registry.engines()["theirs"] is entry
    install((entry,), entry)
    with pytest.raises(InvalidInput, match=r"their-package offers 'theirs' .* so does their-package"):
        registry.engines()
    install(ImportError("no module named beam"))
    with pytest.raises(
        InvalidInput, match=r"their-package \(their_module:ENTRY\) cannot be loaded: ImportError"
    ):
        registry.engines()
    install("a string")
    with pytest.raises(InvalidInput, match="their-package offers 'a string'"):
        registry.engines()


def test_the_workload_of_the_docs_is_a_plugin(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (CHECKOUT / "docs" / "workload.md").read_text()
    own = workloads.names()
    offer(monkeypatch, offered / "poisson_of_the_docs.py", page.split("```python\n")[1].split("```")[0])
    assert workloads.names() == (*own, "poisson")
    assert to_spec({"workload": "poisson", "baseline": "tcp-dns"}).workload == "poisson"
    gaps: list[float] = []

    class Driver:
        interval_s, seed, unanswered = 0.01, "1 client-1", 0

        def request(self) -> None:
            if len(gaps) == 200:
                raise StopAsyncIteration

    async def sleep(seconds: float) -> None:
        gaps.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises((StopAsyncIteration, RuntimeError)):
        asyncio.run(workloads.get("poisson").drive(Driver()))  # type: ignore[arg-type]
    assert 0.008 < sum(gaps) / len(gaps) < 0.012
    assert len(set(gaps)) == len(gaps)


BASELINE = """
from apps.deployment.quic import QuicDeployment
from baselines.registry import Baseline

BASELINES = (
    Baseline(
        name="{name}", title="theirs", summary="As a strategy.", deployment=QuicDeployment,
        reads=frozenset({{"dns_ttl_s"}}), refuses={{"workload": "workload is ours alone"}},
    ),
)
"""


def test_a_baseline_comes_from_outside(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, offered / "their_baseline.py", BASELINE.format(name="theirs"))
    assert baselines.names()[-1] == "theirs"
    assert to_spec({"baseline": "theirs", "dns_ttl_s": 5}).dns_ttl_s == 5
    with pytest.raises(InvalidInput, match="workload is ours alone"):
        to_spec({"baseline": "theirs", "workload": "bursts"})
    with pytest.raises(InvalidInput, match="no baseline 'nobodys'") as caught:
        baselines.get("nobodys")
    assert "ip-move-tcp, theirs" in str(caught.value.hint)
    offer(monkeypatch, offered / "second_mptcp.py", BASELINE.format(name="mptcp"))
    with pytest.raises(InvalidInput, match="offers a baseline 'mptcp'"):
        baselines.names()


def test_the_groups_are_those_of_the_metadata() -> None:
    assert {registry.GROUP, workloads.GROUP, baselines.registry.GROUP} <= set(plugins.GROUPS)
    for group in plugins.GROUPS:
        assert isinstance(importlib.metadata.entry_points(group=group), importlib.metadata.EntryPoints)
