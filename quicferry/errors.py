"""The tree of errors, each with a hint for its reader and the exit code of the command that meets it.

Exit codes: 0 it worked, 1 it failed, 2 the request was wrong, 3 it was done and the service suffered or the
measurement is none (``degraded``, ``overloaded``), 127 this machine cannot do it.
"""

from __future__ import annotations

import errno

import msgspec

#: How a run can end, and the exit status of the command that performed it.
EXIT_CODES = {"succeeded": 0, "failed": 1, "invalid": 2, "degraded": 3, "overloaded": 3, "unsupported": 127}

_HINT = "hint:"  # how programs of ours begin the line after an error's message


def last_line(text: str, otherwise: str = "no message") -> str:
    """The last line of what a program has printed, which names the cause; ``otherwise`` when it is blank.

    A hint below it is left out: it says what to do, not what happened.
    """
    lines = [line for line in text.strip().splitlines() if not line.strip().startswith(_HINT)]
    return lines[-1] if lines else otherwise


def disk_error(what: str, error: OSError, option: str = "--runs") -> StoreError:
    """An error of ours for a file or folder that cannot be written or read; ``what`` begins its message.

    ``option`` is the one that gives another place.
    """
    where = f": {error.filename}" if error.filename else ""
    hints = {
        errno.ENOSPC: f"make room there, or give another place with {option}",
        errno.EDQUOT: f"make room there, or give another place with {option}",
        errno.EIO: f"the disk is damaged: give a place on another one with {option}",
    }
    hint = hints.get(error.errno or 0, f"give a place that can be written to with {option}")
    return StoreError(f"{what}: {error.strerror or error}{where}", hint=hint)


#: What msgspec raises for bytes that are no document of the type that was asked for: a DecodeError, for a
#: string that is not UTF-8 a UnicodeDecodeError, and a RecursionError for what is nested too deeply.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class FerryError(Exception):
    """Something went wrong that a user can understand.

    ``str(error)`` says what happened; ``hint`` says what to do about it.
    """

    exit_code = 1
    outcome = "failed"
    already_printed = False  # true once a command has printed the JSON object that tells of it

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(FerryError):
    """The request itself is wrong; nothing was built."""

    exit_code = 2
    outcome = "invalid"


class Unsupported(FerryError):
    """The request is right, but this machine cannot do it."""

    exit_code = 127
    outcome = "unsupported"


class CommandFailed(FerryError):
    """A program that was run ended with a status other than zero."""

    def __init__(self, argv: list[str], status: int, stderr: str, *, hint: str | None = None) -> None:
        last = last_line(stderr)
        super().__init__(f"{argv[0]} ended with status {status}: {last}", hint=hint)
        self.argv = argv
        self.status = status
        self.stderr = stderr


class EmulationError(FerryError):
    """The emulated network could not be built or is not what was asked for."""


class MigrationError(FerryError):
    """The server could not be moved."""


class FencedError(MigrationError):
    """A frozen connection was asked to send: its keys belong to another host now."""


class CaptureError(FerryError):
    """A capture is missing, unreadable or could not be decrypted."""


class StoreError(FerryError):
    """A run directory is missing, incomplete or of a version this program cannot read."""
