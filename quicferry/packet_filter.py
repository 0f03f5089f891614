"""Attaching a classic BPF program to a socket, so that the kernel drops what nobody here wants."""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_INSTRUCTION_BYTES = 8  # struct sock_filter


def attach(to: socket.socket, program: bytes) -> None:
    """Attach a program: packed ``struct sock_filter``, one after another. Raises ``OSError``.

    What was queued before is not filtered: attach it before the socket is bound to a protocol.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog of linux/filter.h; the kernel copies the program in this call
    described = struct.pack("@HP", len(program) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
