"""Runs aioquic's own test suite on our connection, the extension off: ``make test-upstream``.

The suite is in aioquic's source distribution, of the version that is installed and with the hash that
requirements.lock has; it is fetched by pip and kept under .cache/. What is tested is the promise that a
connection without the extension is aioquic's own. Arguments go to pytest.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path

from quicferry import process

ROOT = Path(__file__).resolve().parents[1]
TESTS_MIN = 600  # the suite of 1.7.2 has 681: a run that collected only a part must not look like success


def locked_requirement(version: str) -> str:
    """aioquic's lines in the lock, with all its hashes."""
    lock = (ROOT / "requirements.lock").read_text()
    found = re.search(
        rf"^aioquic=={re.escape(version)}[^\n]*\\\n(?:    --hash=\S+(?: \\)?\n)+", lock, re.MULTILINE
    )
    if found is None:
        raise SystemExit(f"requirements.lock does not name aioquic {version}, which is installed")
    return found[0]


def fetch(version: str) -> Path:
    """The unpacked source distribution."""
    cache = ROOT / ".cache" / "upstream"
    source = cache / f"aioquic-{version}"
    if not (source / "tests").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        requirement = cache / "aioquic.txt"
        requirement.write_text(locked_requirement(version))
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", "aioquic", "--no-build-isolation", "--dest", str(cache)]
        process.run([*pip, "--require-hashes", "--requirement", requirement], timeout_s=300)
        process.run(["tar", "-xzf", cache / f"aioquic-{version}.tar.gz", "-C", cache])
    return source


def main() -> int:
    """Run the suite; the exit status is pytest's, or 1 when it was not all there."""
    source = fetch(metadata.version("aioquic"))
    report = source / "junit.xml"
    argv = [sys.executable, "-m", "pytest", "-p", "rebind_aioquic", "-p", "no:cacheprovider", "-q"]
    # its own configuration, not ours: warnings of its tests are its business
    argv += ["-c", os.devnull, "--rootdir", str(source), f"--junit-xml={report}", "tests", *sys.argv[1:]]
    suite = process.spawn(
        argv, cwd=source, env=os.environ | {"PYTHONPATH": str(ROOT / "tools")}, stdout=None, stderr=None
    )
    status = suite.wait()
    count = re.search(r'tests="(\d+)"', report.read_text()) if report.is_file() else None
    if status == 0 and len(sys.argv) == 1 and (count is None or int(count[1]) < TESTS_MIN):
        print(
            f"only {count[1] if count else 0} tests ran, at least {TESTS_MIN} were expected", file=sys.stderr
        )
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
