"""The layers of the tests, and what a test needs of the machine.

The folder of a test is its layer, and the layer is its marker: ``pytest -m pure``. A test that needs
something of the machine says so with ``@pytest.mark.needs("criu", …)``. The names are those of the
probes of ``quicferry doctor``; a probe is asked once per session. What it refuses is skipped with its
reason, and fails under ``--require=criu,…``, so that a machine that ought to do it cannot skip silently.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from quicferry.experiment.preflight import ask, probes
from quicferry.probe import ProbeResult

#: layer -> what it is; the fast ones run first
LAYERS = {
    "pure": "no socket, no process, no clock",
    "contract": "what we rely on in aioquic, CRIU and other programs",
    "fake": "whole flows on stand-ins for the network and the engines",
    "pair": "two endpoints of the protocol core in virtual time",
    "simulation": "whole worlds in virtual time, drawn from a seed, and models explored exhaustively",
    "loopback": "real sockets and processes on this machine, no emulation",
    "e2e": "real runs in an emulated network, as root",
    "browser": "the report in a real browser; only with --browser, see `make test-report`",
}
IMPLIED_NEEDS = {"e2e": ("root",)}

# how quick an example is says something of the machine only
settings.register_profile(
    "quicferry", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("quicferry")

_TESTS = Path(__file__).parent
_answers: dict[str, ProbeResult] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="PROBE,…",
        help="probes that must work here: a test that needs one of them fails instead of being skipped",
    )
    parser.addoption(
        "--needing",
        default="",
        metavar="PROBE,…",
        help="collect only tests that need one of these probes",
    )
    parser.addoption(
        "--matrix-seed",
        type=int,
        default=1,
        metavar="N",
        help="what draws the end-to-end runs of test_matrix",
    )
    parser.addoption("--matrix-cells", type=int, default=3, metavar="N", help="how many of them are run")

    parser.addoption("--browser", action="store_true", help="collect the tests that open a browser as well")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A browser is 400 MB and part of no setup: ``make test-report`` installs it and asks for these tests."""
    return True if collection_path == _TESTS / "browser" and not config.getoption("--browser") else None


def pytest_configure(config: pytest.Config) -> None:
    # tables are as wide as their content, whatever the terminal of the tester
    os.environ.pop("COLUMNS", None)
    for layer, meaning in LAYERS.items():
        config.addinivalue_line("markers", f"{layer}: {meaning}")
    config.addinivalue_line("markers", "needs(*probes): what the test needs of this machine")
    for option in ("--require", "--needing"):
        named = _named(config, option)
        if named and (unknown := named - set(probes())):
            raise pytest.UsageError(
                f"{option}: no such probe: {', '.join(sorted(unknown))} (there are: {', '.join(probes())})"
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {layer: place for place, layer in enumerate(LAYERS)}
    for item in items:
        item.add_marker(_layer(item))
    items.sort(key=lambda item: order[_layer(item)])
    if needing := _named(config, "--needing"):
        others = [item for item in items if not needing & set(_needs(item))]
        items[:] = [item for item in items if needing & set(_needs(item))]
        config.hook.pytest_deselected(items=others)


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = _named(item.config, "--require")
    for name in _needs(item):
        answer = _ask(name)
        if answer.works:
            continue
        reason = f"{name}: {answer.detail}" + (f" ({answer.hint})" if answer.hint else "")
        if name in required:
            pytest.fail(f"required, but does not work here: {reason}", pytrace=False)
        pytest.skip(reason)


def _layer(item: pytest.Item) -> str:
    path = item.path.relative_to(_TESTS)
    if path.parts[0] not in LAYERS:
        raise pytest.UsageError(f"tests/{path} is in no layer: move it to one of {', '.join(LAYERS)}")
    return path.parts[0]


def _needs(item: pytest.Item) -> list[str]:
    wanted = list(IMPLIED_NEEDS.get(_layer(item), ()))
    for marker in item.iter_markers("needs"):
        wanted += [str(name) for name in marker.args]
    return list(dict.fromkeys(wanted))


def _named(config: pytest.Config, option: str) -> set[str]:
    """The probes that an option names."""
    return {name.strip() for name in str(config.getoption(option)).split(",") if name.strip()}


def _ask(name: str) -> ProbeResult:
    if name not in _answers:
        known = probes()
        if name not in known:
            pytest.fail(f"needs({name!r}): there is no such probe", pytrace=False)
        (_answers[name],) = ask([known[name]])
    return _answers[name]
