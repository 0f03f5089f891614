"""What is seen of a command from outside, with a script in the command's place that does one thing wrong."""

from __future__ import annotations

import secrets
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from proof.explore.judge import complaints
from proof.explore.perform import perform
from quicferry.emulation.sandbox.ownership import RUN_TAG
from tests.explored import GOOD

#: what a run leaves when all is well, and then what the test adds
SCRIPT = """
    import os, subprocess, sys, time
    from pathlib import Path
    root = Path(sys.argv[sys.argv.index("--runs") + 1]) / {name!r}
    for name in ("manifest.json", "events.jsonl", "client.json", "derived/result.json",
                 "derived/timeline.svg", "logs/client.log", "secrets/keys.log", "captures/client.pcapng"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    print({result!r})
"""


@pytest.fixture
def name() -> str:
    """The run's, by which its processes are known: other tests may have some at the same time."""
    return f"run-{secrets.token_hex(6)}"


@pytest.fixture
def command(tmp_path, name: str):
    """Makes a program of a script."""

    def make(more: str = "", *, script: str = SCRIPT) -> Path:
        result = msgspec.json.encode(msgspec.structs.replace(GOOD, run_dir=str(tmp_path / "runs" / name)))
        path = tmp_path / "quicferry"
        text = (
            textwrap.dedent(script)
            .replace("{result!r}", repr(result.decode()))
            .replace("{name!r}", repr(name))
        )
        path.write_text(f"#!{sys.executable}\n{text}{textwrap.dedent(more)}")
        path.chmod(0o755)
        return path

    return make


def kinds(tmp_path: Path, program: Path, values=None, **options) -> list[str]:
    return [
        each.kind for each in complaints(perform(values or {}, tmp_path / "runs", program=program, **options))
    ]


def test_a_command_that_does_all_right(tmp_path, command) -> None:
    assert kinds(tmp_path, command()) == []


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("left behind", "(Path(os.environ['TMPDIR']) / 'forgotten').touch()"),
        ("left behind", "root.with_name('other.partial').mkdir()"),
        ("incomplete", "(root / 'client.json').unlink()"),
        ("incomplete", "(root / 'derived' / 'result.json.partial').touch()"),
        (
            "traceback",
            "text = 'Traceback (most recent call last):\\n  at\\nKeyError: 3\\n'\n"
            "(root / 'logs' / 'x.log').write_text(text)",
        ),
        ("exit status", "sys.exit(1)"),
        ("exit status", "os.kill(os.getpid(), 9)"),
        (
            "crash: quicferry: internal error: KeyError: N",
            "sys.exit('quicferry: internal error: KeyError: 3')",
        ),
    ],
)
def test_each_thing_that_may_not_be_is_seen(tmp_path, command, kind: str, more: str) -> None:
    assert kinds(tmp_path, command(more)) == [kind]


def test_a_process_that_lives_on_is_seen(tmp_path, command, name: str) -> None:
    more = f"""
        subprocess.Popen(["sleep", "6"], env={{"{RUN_TAG}": "{name}"}}, start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.2)
    """
    assert kinds(tmp_path, command(more)) == ["left behind"]


def test_a_command_that_does_not_end_is_ended(tmp_path, command) -> None:
    begun = time.monotonic()
    assert kinds(tmp_path, command("sys.stdout.flush()\ntime.sleep(60)"), timeout_s=1.5) == ["hung"]
    assert time.monotonic() - begun < 30


REFUSES = """
    import sys
    sys.stderr.write("quicferry: dns_ttl_s is for baselines\\n  hint: leave it out\\n")
    sys.exit(2)
"""


def test_a_refusal_is_right_where_it_is_due_and_wrong_elsewhere(tmp_path, command) -> None:
    refuses = command(script=REFUSES)
    assert kinds(tmp_path, refuses, {"dns_ttl_s": 5}) == []
    assert kinds(tmp_path, refuses) == ["refused"]
    assert kinds(tmp_path, command(), {"dns_ttl_s": 5}) == ["not refused"]
