"""Help for tests that need a machine of their own: run Python inside a private root, get JSON back.

    result = in_private_root('''
        from quicferry.process import run
        report(run(["ip", "-br", "link"]).stdout)
    ''', tmp_path)

``report(value)`` sends one JSON value to the test. ``ARGUMENTS`` in the script is what the test gave
as ``arguments``. A script that raises, or ends without a report, fails the test with its stderr.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quicferry.emulation.sandbox import private_root
from quicferry.paths import CHECKOUT
from quicferry.process import DEVNULL, Popen, TimeoutExpired
from quicferry.slowness import longer

_PRELUDE = """\
import json, os, sys
ARGUMENTS = json.loads(os.environ["TEST_ARGUMENTS"])
def report(value):
    with open(os.environ["TEST_REPORT"], "w", encoding="utf-8") as out:
        json.dump(value, out)
"""


class ScriptFailed(AssertionError):
    """The script inside the private root raised, timed out or did not report."""


class InPrivateRoot:
    """A Python script that runs in a private root. A context manager: at its end, nothing runs on."""

    def __init__(
        self, script: str, directory: Path, *, arguments: Any = None, env: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.report_file = directory / "report.json"
        self._source = directory / "script.py"
        self._source.write_text(_PRELUDE + textwrap.dedent(script), encoding="utf-8")
        self._stdout_file, self._stderr_file = directory / "stdout", directory / "stderr"
        variables = {
            "TEST_REPORT": str(self.report_file),
            "TEST_ARGUMENTS": msgspec.json.encode(arguments).decode(),
            "PYTHONPATH": str(CHECKOUT),
        }
        with self._stdout_file.open("wb") as stdout, self._stderr_file.open("wb") as stderr:
            self.root = private_root.start(
                [sys.executable, "-W", "error", self._source],
                stdin=DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **variables, **(env or {})},
                cwd=CHECKOUT,
            )

    @property
    def process(self) -> Popen[bytes]:
        """The outermost process of the private root."""
        return self.root.process

    @property
    def stdout(self) -> str:
        """What the script has printed so far."""
        return self._stdout_file.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What the script has written to stderr so far."""
        return self._stderr_file.read_text(encoding="utf-8", errors="replace")

    def result(self, timeout_s: float = 120.0) -> Any:
        """Wait for the end; what the script reported. A slow processor is waited for longer."""
        timeout_s = longer(timeout_s)
        try:
            status = self.root.wait(timeout_s)
        except TimeoutExpired:
            self.root.kill()
            raise ScriptFailed(f"still running after {timeout_s} s\n{self.stdout}\n{self.stderr}") from None
        if status != 0 or not self.report_file.exists():
            raise ScriptFailed(f"the script ended with status {status}\n{self.stdout}\n{self.stderr}")
        return msgspec.json.decode(self.report_file.read_bytes())

    def __enter__(self) -> InPrivateRoot:
        return self

    def __exit__(self, *_: object) -> None:
        self.root.kill()


def in_private_root(
    script: str,
    directory: Path,
    *,
    arguments: Any = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Any:
    """Run a script in a private root to its end; what it reported. ``directory``: pytest's ``tmp_path``."""
    with InPrivateRoot(script, directory, arguments=arguments, env=env) as running:
        return running.result(timeout_s)
