"""Says of a capture file whether it is whole, and if not, what is missing where.

Who measures leaves out what cannot be read; a run must say that there was something to leave out.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from quicferry.capture.files.blocks import CaptureReader
from quicferry.errors import CaptureError


def damage_of(path: Path) -> str | None:
    """What is wrong with a capture file, in words that name it; None when it is whole.

    Raises ``OSError`` when there is no such file.
    """
    path.stat()
    try:
        with CaptureReader(path) as reader:
            deque(reader, maxlen=0)  # what it could not read it knows at the end
    except CaptureError as error:
        return str(error).replace(str(path), path.name, 1)
    if not reader.gaps:
        return None
    reason = reader.gaps[0].reason
    cut = reason.removeprefix("the file ")
    return f"{path.name} {cut}" if cut != reason else f"{path.name} is damaged: {reason}"
