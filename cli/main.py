"""The ``quicferry`` command: its subcommands, and what becomes of an error.

A subcommand is a module of this folder, loaded when it is called and not before, so that
``quicferry --help`` need not wait for numpy. Exit codes: 0 it worked, 1 it failed, 2 the request was
wrong, 3 a run was degraded or overloaded, 127 this machine cannot do it, 128 + N it was ended by signal N.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from cli.common import output
from quicferry import __version__, plugins
from quicferry.errors import FerryError, InvalidInput, disk_error

#: command -> the first line of its help, here so that listing the commands loads none of them.
#: Command ``x`` is the object ``x`` of the module ``cli.x``. A test holds both ends together.
COMMANDS: dict[str, str] = {
    "run": "Move a live server from one edge to another, once, and measure how long it was gone.",
    "compare": "Run strategies and baselines with every engine; print medians with 95 % intervals.",
    "sweep": "Run every combination of a scenario's axes, repeated, in random order.",
    "reproduce": "Run a published experiment; print and draw published and measured values side by side.",
    "report": "Write one self-contained HTML page over sweeps or runs, with figures that can be zoomed.",
    "export": "Write sweeps or runs as one table: CSV, Parquet, JSON or LaTeX.",
    "demo": "Move the server once with each strategy, by CRIU and by hand-off, and show the result.",
    "topo": "List, show and draw the emulated topologies.",
    "faults": "List what `quicferry run --fault` can make go wrong, and where the server is afterwards.",
    "runs": "List and show the runs that were recorded, and merge their captures.",
    "inspect": "Tell a capture packet by packet: connections, paths, migrations, frames, gaps.",
    "doctor": "Find out by trying what this machine can do.",
    "clean": "Remove what interrupted runs left behind.",
}


#: Signals that end the tool. SIGKILL cannot be handled: what a run has made goes with its private root.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LazyGroup(click.Group):
    """A group whose commands are imported at the moment they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command), f"cli.{cmd_name}.{cmd_name} is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _plug_in(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> None:
    """Load plug-ins before a command is, whose options name what they offer."""
    if not given:
        return
    # in the environment, so that the processes of a run find them, too
    known = os.environ.get(plugins.VARIABLE, "").split(os.pathsep)
    absolute = [os.path.abspath(path) for path in given]  # noqa: PTH100  # it may not exist: said below
    os.environ[plugins.VARIABLE] = os.pathsep.join(dict.fromkeys([*filter(None, known), *absolute]))
    for path in plugins.paths():
        plugins.load(path)


@click.group(
    cls=LazyGroup,
    name="quicferry",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--plugin",
    multiple=True,
    metavar="PATH",
    callback=_plug_in,
    expose_value=False,
    is_eager=True,
    help="Take engines, strategies, baselines, topologies and workloads from this Python file or package as "
    "well; may be given several times (also: QUICFERRY_PLUGINS).",
)
@click.version_option(__version__, prog_name="quicferry", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (also: QUICFERRY_DEBUG=1).")
def quicferry(debug: bool) -> None:
    """Move live QUIC servers between emulated edge hosts and see how long they were gone.

    Results go to stdout, progress and messages to stderr.
    """
    if debug:
        os.environ["QUICFERRY_DEBUG"] = "1"  # in the environment, so that the process inside a run sees it


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error has become a message by then."""
    as_json = "--json" in arguments  # read here: a wrong command line is not parsed far enough to tell
    try:
        _check_words(arguments)
        status = quicferry.main(args=list(arguments), prog_name="quicferry", standalone_mode=False)
    except FerryError as error:
        output.report(error, as_json=as_json)
        _trace_if_asked()
        return error.exit_code
    except click.ClickException as error:
        if as_json:
            outcome = "invalid" if isinstance(error, click.UsageError) else "failed"
            output.print_json({"outcome": outcome, "error": error.format_message(), "hint": None})
        error.show(sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        # click has made an Abort of it
        stopped = error if isinstance(error, Stopped) else error.__context__
        return stopped.status if isinstance(stopped, Stopped) else 130  # 128 + SIGINT, as shells have it
    except BrokenPipeError:
        # the reader of our output has gone (`quicferry runs list | head`): nothing is left to be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        output.report(disk_error("a file cannot be read or written", error, "its option"), as_json=as_json)
        _trace_if_asked()
        return 1
    except Exception as error:  # the last resort: a defect of ours must not look like one of the user's
        if as_json:
            output.print_json(
                {"outcome": "failed", "error": f"{type(error).__name__}: {error}", "hint": None}
            )
        output.say_error(
            f"internal error: {type(error).__name__}: {error}",
            hint=None if _debugging() else "run it again with QUICFERRY_DEBUG=1 to see where, and report it",
        )
        _trace_if_asked()
        return 1
    return status if isinstance(status, int) else 0


def _check_words(arguments: Sequence[str]) -> None:
    """Raise ``InvalidInput`` for bytes that are no text: no JSON object could name such a file."""
    for word in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise InvalidInput(
                f"{word!a} has bytes that are no text in the encoding of this machine",
                hint="give a name in UTF-8",
            )


def _debugging() -> bool:
    return os.environ.get("QUICFERRY_DEBUG", "") not in ("", "0")


def _trace_if_asked() -> None:
    if _debugging():
        traceback.print_exc()


class Stopped(KeyboardInterrupt):
    """A signal asks the tool to end: raised in the main thread, so that all that is open is ended first."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


def _open_what_is_closed() -> None:
    """Have all three standard streams: another file would get the number of one that was closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - until the end
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - until the end


def _stop(number: int, _frame: object) -> None:
    for each in STOPPING:  # the end itself is not to be interrupted; it takes some seconds at most
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def main() -> None:
    """The entry point of ``bin/quicferry``."""
    _open_what_is_closed()
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and `&` have it
            signal.signal(number, _stop)
    status = call(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:  # said here, else the interpreter says it in words of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        output.say_error(f"the output cannot be written: {error.strerror}")
        status = status or 1
    sys.exit(status)


if __name__ == "__main__":
    main()
