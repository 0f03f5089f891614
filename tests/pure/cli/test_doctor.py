"""What `quicferry doctor` makes of the probes' answers."""

from __future__ import annotations

import json

import pytest

from cli import main
from quicferry.errors import InvalidInput, Unsupported
from quicferry.experiment import preflight
from quicferry.probe import Probe


def yes():
    return "seen"


def no():
    raise Unsupported("not here", hint="do this")


def unlucky():
    raise OSError(5, "Input/output error")


@pytest.fixture
def machine(monkeypatch):
    """A machine that can do what is in the mapping."""

    def install(answers):
        known = {name: Probe(name=name, needed_for="all", ask=ask) for name, ask in answers.items()}
        monkeypatch.setattr(preflight, "probes", lambda: known)
        monkeypatch.setattr(preflight, "NEEDED_FOR_DEMO", ("root", "veth"))

    return install


def test_a_machine_that_can_do_the_demo(machine, capsys):
    machine({"root": yes, "veth": yes, "netem": no})
    assert main.call(["doctor", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["outcome"] == "succeeded"
    assert [(probe["name"], probe["works"]) for probe in diagnosis["probes"]] == [
        ("root", True),
        ("veth", True),
        ("netem", False),
    ]
    assert diagnosis["probes"][2]["detail"] == "not here"
    assert diagnosis["probes"][2]["hint"] == "do this"


def test_a_machine_that_cannot(machine, capsys):
    machine({"root": yes, "veth": no})
    assert main.call(["doctor"]) == 127
    out, err = capsys.readouterr()
    assert "do this" in out
    assert "missing for the demo: veth" in err


def test_one_probe_decides_alone(machine, capsys):
    machine({"root": yes, "veth": no, "netem": unlucky})
    assert main.call(["doctor", "--only", "root"]) == 0
    assert main.call(["doctor", "--only", "root", "--only", "netem"]) == 127
    assert "Input/output error" in capsys.readouterr().out
    assert main.call(["doctor", "--only", "vet"]) == 2
    assert "netem" in capsys.readouterr().err


def test_the_list_for_pytest(machine, capsys):
    machine({"root": yes, "veth": no, "netem": yes})
    assert main.call(["doctor", "--require-list"]) == 0
    assert capsys.readouterr().out == "root,netem\n"


def test_a_check_before_a_run_stops_at_the_first_no(machine):
    machine({"root": yes, "veth": no, "netem": unlucky})
    assert [result.name for result in preflight.check(["root"])] == ["root"]
    with pytest.raises(Unsupported, match="veth: not here"):
        preflight.check(["root", "veth", "netem"])
    with pytest.raises(InvalidInput):
        preflight.check(["vet"])


def test_the_real_list_is_whole():
    known = preflight.probes()
    assert set(preflight.NEEDED_FOR_DEMO) <= set(known)
    names = "root netns veth netem shaped-link mininet criu criu-lazy-pages criu-page-server criu-tracking"
    names += " tcpdump tshark oci oci-pre-dump oci-lazy-pages podman rsync mptcp dns"
    assert set(known) == set(names.split())
    assert all(probe.needed_for for probe in known.values())
