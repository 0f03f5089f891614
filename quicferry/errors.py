"""The tree of errors, each with a hint for its reader and the exit code of the command that meets it.

Exit codes: 0 it worked, 1 it failed, 2 the request was wrong, 127 this machine cannot do it.
"""

from __future__ import annotations

import msgspec


def last_line(text: str, otherwise: str = "no message") -> str:
    """The last line of what a program has printed; ``otherwise`` when it is blank."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else otherwise


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
