"""The registry of baselines, the service's name, and how a comparison is put together."""

from __future__ import annotations

import base64

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import dns.tsig
import dns.tsigkeyring
import pytest

import baselines
from apps.config import SERVER_NAME
from baselines.dns.config import KEY_NAME, NAME, NameServerConfig, UpdaterConfig
from baselines.dns.nameserver import named_configuration, zone_text
from baselines.dns.resolver import NameNotFound, read_answer
from baselines.dns.updater import Updater
from cli import main
from quicferry.analysis.breakdown import ORDER
from quicferry.analysis.describe import BREAKDOWN_TITLES
from quicferry.analysis.tables import cells, ratios
from quicferry.errors import InvalidInput
from quicferry.events import EventLog
from quicferry.experiment.preflight import probes
from quicferry.model import Endpoint
from quicferry.record import RunResult
from session.request import to_spec
from session.scenario import Scenario

SERVER = NameServerConfig(vantage="dns", listen="10.0.81.2", address="10.0.1.2", ttl_s=5, key="")


@pytest.mark.parametrize("name", baselines.names())
def test_every_baseline_is_complete(name: str) -> None:
    baseline = baselines.get(name)
    assert baseline.name == name
    assert baseline.title
    assert baseline.summary.endswith(".")
    assert callable(baseline.deployment)
    assert set(baseline.needs) <= set(probes())


def test_an_unknown_baseline_names_the_known() -> None:
    with pytest.raises(InvalidInput, match="no baseline 'tcp'") as caught:
        baselines.get("tcp")
    assert caught.value.hint is not None
    assert "tcp-dns" in caught.value.hint


def test_the_name_is_that_of_the_certificate() -> None:
    assert NAME.rstrip(".") == SERVER_NAME


def test_the_zone_has_the_ttl_that_was_asked_for() -> None:
    assert "service 5 A 10.0.1.2\n" in zone_text(SERVER)


def test_named_takes_updates_of_one_record_with_the_key_only() -> None:
    text = named_configuration(SERVER, "c2VjcmV0")
    assert f'update-policy {{ grant "{KEY_NAME}" name {NAME} A; }};' in text
    assert "recursion no" in text
    assert "listen-on port 53 { 10.0.81.2; };" in text


def test_an_update_is_signed_and_replaces_the_address(tmp_path) -> None:
    secret = base64.b64encode(b"k" * 32).decode()
    (tmp_path / "key").write_text(secret + "\n")
    config = UpdaterConfig(
        vantage="orch", server=Endpoint("10.0.81.2", 53), ttl_s=5, key=str(tmp_path / "key")
    )
    wire = Updater(config, EventLog("orch")).message("10.0.2.2").to_wire()
    read = dns.message.from_wire(wire, keyring={dns.name.from_text(KEY_NAME): dns.tsig.Key(KEY_NAME, secret)})
    assert read.had_tsig
    assert read.opcode() == dns.opcode.UPDATE
    records = [rrset.to_text() for rrset in read.sections[2]]
    assert records == [f"{NAME} ANY A", f"{NAME} 5 IN A 10.0.2.2"]
    with pytest.raises(dns.tsig.BadSignature):
        other = dns.tsig.Key(KEY_NAME, base64.b64encode(b"x" * 32).decode())
        dns.message.from_wire(wire, keyring={dns.name.from_text(KEY_NAME): other})


def test_answers_are_read() -> None:
    question = dns.message.make_query(NAME, "A")
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text(NAME, 30, "IN", "A", "10.0.2.2"))
    assert read_answer(answer) == ("10.0.2.2", 30)
    with pytest.raises(NameNotFound, match="has no address"):
        read_answer(dns.message.make_response(question))
    refused = dns.message.make_response(question)
    refused.set_rcode(dns.rcode.REFUSED)
    with pytest.raises(NameNotFound, match="REFUSED"):
        read_answer(refused)


# --- comparisons --------------------------------------------------------------------------------


def test_strategies_and_baselines_take_turns_with_the_same_seeds() -> None:
    scenario = Scenario(
        repetitions=2,
        run={"seed": 7},
        sweep={
            "engine": ["criu-cold", "handoff"],
            "strategy": ["pool", "symmetric"],
            "baseline": ["tcp-dns"],
        },
    )
    runs = [(spec.engine, spec.baseline or str(spec.strategy), spec.seed) for spec in scenario.runs()]
    round_one = [(e, c, 7) for e in ("criu-cold", "handoff") for c in ("pool", "symmetric", "tcp-dns")]
    assert runs == round_one + [(engine, contender, 8) for engine, contender, _ in round_one]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"baseline": ["tcp-dns", "mptcp"]}, ["tcp-dns", "mptcp"]),
        ({"strategy": [], "baseline": ["tcp-dns"]}, ["tcp-dns"]),
        ({"strategy": ["pool"], "baseline": []}, ["pool"]),
        ({"engine": ["handoff"]}, ["proactive-explicit"]),
    ],
)
def test_either_may_be_alone(sweep, expected) -> None:
    runs = list(Scenario(sweep=sweep).runs())
    assert [spec.baseline or str(spec.strategy) for spec in runs] == expected


@pytest.mark.parametrize(
    "wrong",
    [{"dns_ttl_s": 61}, {"dns_ttl_s": -1}, {"dns_cache": "stale"}, {"request_timeout_ms": 1}],
)
def test_axes_of_baselines_are_checked(wrong) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        to_spec({"baseline": "tcp-dns", **wrong})


def result(
    strategy: str, kind: str, engine: str, time_ms: float | None, outcome: str = "succeeded"
) -> RunResult:
    return RunResult(
        outcome=outcome,
        strategy=strategy,
        kind=kind,
        engine=engine,
        seed=1,
        service_migration_time_ms=time_ms,
    )


def test_ratios_are_to_the_best_strategy_of_the_same_engine() -> None:
    results = [
        result("pool", "strategy", "handoff", 30.0),
        result("symmetric", "strategy", "handoff", 20.0),
        result("symmetric", "strategy", "handoff", 22.0),
        result("symmetric", "strategy", "criu-cold", 200.0),
        result("tcp-dns", "baseline", "handoff", 420.0),
        result("tcp-dns", "baseline", "criu-cold", 500.0),
        result("mptcp", "baseline", "handoff", 5.0, "failed"),
    ]
    assert ratios(results) == {
        ("pool", "handoff"): pytest.approx(30 / 21),
        ("symmetric", "handoff"): 1.0,
        ("symmetric", "criu-cold"): 1.0,
        ("tcp-dns", "handoff"): pytest.approx(20.0),
        ("tcp-dns", "criu-cold"): 2.5,
    }
    assert ratios(results[:4]) == {}
    assert ratios(results[4:]) == {}


def test_records_that_live_longer_are_cells_of_their_own() -> None:
    results = [result("tcp-dns", "baseline", "handoff", 500.0) for _ in range(4)]
    for each, ttl_s in zip(results, (1, 1, 30, None), strict=True):
        each.dns_ttl_s = ttl_s
    assert [(name, len(group)) for (name, _), group in cells(results).items()] == [
        ("tcp-dns", 3),
        ("tcp-dns, TTL 30 s", 1),
    ]


def test_every_part_has_a_title() -> None:
    assert tuple(BREAKDOWN_TITLES) == ORDER


def test_a_run_has_a_strategy_or_a_baseline(capsys) -> None:
    assert main.call(["run", "--json", "--baseline", "tcp-dns", "--strategy", "pool"]) == 2
    assert "not both" in capsys.readouterr().err
