"""Reading and writing many frames with one system call, reading each with its receive stamp.

``socket.recvmsg`` costs 5.5 us a frame, three times as much as the system call itself: it builds lists
and tuples and asks for the interface's name each time. recvmmsg(2), called through ctypes into buffers
that are laid out once, costs a third of that. (Measured on Python 3.11; see docs/links.md.)
"""

from __future__ import annotations

import ctypes
import errno
import os

from quicferry.emulation.links.cable.memory import LARGEST_FRAME_BYTES

MSG_DONTWAIT = 0x40
_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_CONTROL_BYTES = 32  # struct cmsghdr (16) and struct timespec (16) where long has 64 bits


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr: struct msghdr and the number of bytes received."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("padding", ctypes.c_int),  # msghdr's size is a multiple of 8 where pointers have 8 bytes
        ("received", ctypes.c_uint32),
    )


class BatchReader:
    """Buffers for up to ``batch`` frames, used for one socket after the other."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._frames = bytearray(batch * LARGEST_FRAME_BYTES)
        self._control = bytearray(batch * _CONTROL_BYTES)
        frames_at = ctypes.addressof((ctypes.c_char * len(self._frames)).from_buffer(self._frames))
        control_at = ctypes.addressof((ctypes.c_char * len(self._control)).from_buffer(self._control))
        self._vectors = (_IoVector * batch)(
            *(_IoVector(frames_at + i * LARGEST_FRAME_BYTES, LARGEST_FRAME_BYTES) for i in range(batch))
        )
        vectors_at = ctypes.addressof(self._vectors)
        template = (_Message * batch)()
        for i, message in enumerate(template):
            message.vectors = vectors_at + i * ctypes.sizeof(_IoVector)
            message.vector_count = 1
            message.control = control_at + i * _CONTROL_BYTES
            message.control_length = _CONTROL_BYTES
        # The kernel overwrites lengths, so each call begins with a fresh copy.
        self._template = bytes(template)
        self._messages = bytearray(self._template)
        self._messages_at = ctypes.addressof(
            (ctypes.c_char * len(self._messages)).from_buffer(self._messages)
        )
        # Plain views are read ten times faster than ctypes fields.
        self._frame_view = memoryview(self._frames)
        self._lengths = memoryview(self._messages).cast("I")
        self._words = ctypes.sizeof(_Message) // 4
        self._length_word = _Message.received.offset // 4
        self._stamps = memoryview(self._control).cast("q")

    def read(self, descriptor: int) -> list[tuple[bytes, int]]:
        """The frames that are there, at most ``batch``: each with its stamp in CLOCK_REALTIME ns.

        The socket needs SO_TIMESTAMPNS. Raises ``OSError``, such as ENETDOWN when the interface
        went down, but not when nothing is there.
        """
        self._messages[:] = self._template
        count = _libc.recvmmsg(descriptor, self._messages_at, self._batch, MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(number, os.strerror(number))
        view, lengths, stamps = self._frame_view, self._lengths, self._stamps
        words, at = self._words, self._length_word
        return [
            (
                bytes(view[i * LARGEST_FRAME_BYTES : i * LARGEST_FRAME_BYTES + lengths[i * words + at]]),
                stamps[4 * i + 2] * 1_000_000_000 + stamps[4 * i + 3],
            )
            for i in range(count)
        ]


class RepeatedFrame:
    """One frame, to be sent many times."""

    def __init__(self, frame: bytes, batch: int) -> None:
        self._batch = batch
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._vector = _IoVector(ctypes.addressof(self._frame), len(frame))
        self._messages = (_Message * batch)()
        for message in self._messages:
            message.vectors = ctypes.addressof(self._vector)
            message.vector_count = 1

    def send(self, descriptor: int, count: int) -> int:
        """Send it ``count`` times, at most ``batch``; how often that worked. Raises ``OSError``."""
        done = _libc.sendmmsg(
            descriptor, ctypes.addressof(self._messages), min(count, self._batch), MSG_DONTWAIT
        )
        if done < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
                return 0
            raise OSError(number, os.strerror(number))
        return int(done)
