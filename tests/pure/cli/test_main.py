"""The frame of the command line: every error becomes one message, one exit code, one JSON object."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import click
import pytest

from cli import main
from cli.common import output
from quicferry import __version__
from quicferry.errors import FerryError, InvalidInput, MigrationError, Unsupported


@pytest.fixture
def offer(monkeypatch):
    """Offer a command ``boom`` that does what the test wants."""

    def install(action):
        @click.command()
        @output.json_option
        @click.option("--number", type=int, default=0)
        @click.pass_context
        def boom(ctx, as_json, number):
            return action(ctx)

        module = ModuleType("cli.boom")
        module.boom = boom
        monkeypatch.setitem(sys.modules, "cli.boom", module)
        monkeypatch.setitem(main.COMMANDS, "boom", "Break.")

    monkeypatch.delenv("QUICFERRY_DEBUG", raising=False)
    return install


def raising(error):
    def action(ctx):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (InvalidInput("a loss of 150 %", hint="give 0 to 100"), 2, "invalid"),
        (Unsupported("no netem here", hint="use the cable"), 127, "unsupported"),
        (MigrationError("the dump failed"), 1, "failed"),
        (FerryError("something"), 1, "failed"),
    ],
)
def test_an_error_is_a_message_an_exit_code_and_one_json_object(offer, capsys, error, status, outcome):
    offer(raising(error))
    assert main.call(["boom", "--json"]) == status
    out, err = capsys.readouterr()
    assert json.loads(out) == {"outcome": outcome, "error": str(error), "hint": error.hint}
    assert out.count("\n") == 1
    assert str(error) in err
    assert (error.hint or "") in err
    assert "Traceback" not in err


def test_without_json_stdout_stays_empty(offer, capsys):
    offer(raising(InvalidInput("no", hint="yes")))
    assert main.call(["boom"]) == 2
    assert capsys.readouterr().out == ""


def test_a_command_that_printed_its_object_prints_no_second_one(offer, capsys):
    def action(ctx):
        output.print_json({"outcome": "failed", "strategy": "pool"})
        error = MigrationError("the dump failed")
        error.already_printed = True
        raise error

    offer(action)
    assert main.call(["boom", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["strategy"] == "pool"
    assert "the dump failed" in err


@pytest.mark.parametrize("arguments", [["boom", "--number", "x", "--json"], ["nope", "--json"], ["--json"]])
def test_a_wrong_command_line_is_invalid(offer, capsys, arguments):
    offer(lambda ctx: None)
    assert main.call(arguments) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["outcome"] == "invalid"
    assert "quicferry" in err


def test_a_name_that_is_no_text_is_invalid(offer, capsys):
    offer(lambda ctx: None)
    assert main.call(["boom", "--json", "--runs", "runs-\udcff"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["outcome"] == "invalid"
    assert "runs-\\udcff" in err
    assert "UTF-8" in err


def test_a_defect_of_ours_is_short_unless_debugging(offer, capsys, monkeypatch):
    offer(raising(ZeroDivisionError("a defect")))
    assert main.call(["boom", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["outcome"] == "failed"
    assert "ZeroDivisionError: a defect" in err
    assert "Traceback" not in err
    monkeypatch.setenv("QUICFERRY_DEBUG", "1")
    assert main.call(["boom"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_quiet(offer, capsys):
    offer(raising(KeyboardInterrupt()))
    assert main.call(["boom"]) == 130
    assert capsys.readouterr().err.strip() == ""


def test_a_command_chooses_its_exit_status(offer):
    offer(lambda ctx: ctx.exit(127))
    assert main.call(["boom"]) == 127
    offer(lambda ctx: None)
    assert main.call(["boom"]) == 0


def test_version(capsys):
    assert main.call(["--version"]) == 0
    assert capsys.readouterr().out == f"quicferry {__version__}\n"


def test_help_lists_every_command_without_loading_it(capsys, monkeypatch):
    for name in main.COMMANDS:
        monkeypatch.delitem(sys.modules, f"cli.{name}", raising=False)
    assert main.call(["--help"]) == 0
    out = capsys.readouterr().out
    for name in main.COMMANDS:
        assert f"  {name} " in out
        assert f"cli.{name}" not in sys.modules


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_listed_help_is_the_commands_own(name):
    command = main.quicferry.get_command(click.Context(main.quicferry), name)
    assert command.name == name
    assert main.COMMANDS[name] == (command.help or "").split("\n\n")[0].replace("\n", " ").strip()


def walk(command, path):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from walk(command.get_command(context, name), f"{path} {name}")


def test_every_command_and_option_has_help():
    for path, command in walk(main.quicferry, "quicferry"):
        assert command.help, f"{path} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.opts[0]} has no help"


def test_root_is_asked_for_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["main.py", "run", "--strategy", "pool"])
    with pytest.raises(Unsupported) as caught:
        output.ask_for_root("a run")
    assert caught.value.hint == "run `sudo bin/quicferry run --strategy pool`"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    output.ask_for_root("a run")
