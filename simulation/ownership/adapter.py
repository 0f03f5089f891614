"""All that this world takes from ``quicferry.migration`` and ``apps``, in one module.

When a module there is moved or renamed, this file changes and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from apps.client.load import Load
from apps.config import ALPN, ClientConfig, ServerConfig
from apps.server import server as server_module
from apps.server import shell as shell_module
from apps.udp import BATCH, Datagram
from quicferry.migration import journal as journal_module
from quicferry.migration.agent import agent as agent_module
from quicferry.migration.agent.agent import NodeAgent
from quicferry.migration.agent.config import AgentConfig, ServerCommand
from quicferry.migration.datagrams import forwarder as forwarder_module
from quicferry.migration.datagrams import waiting_room as waiting_room_module
from quicferry.migration.orchestrator import (
    MoveCommand,
    Orchestrator,
    OrchestratorConfig,
    StartCommand,
)
from quicferry.migration.order import Deadlines
from quicferry.migration.rpc import channel as channel_module
from quicferry.migration.rpc.credentials import Identity, TlsFiles
from quicferry.migration.rpc.messages import Outcome
from quicferry.migration.states import Step
from quicferry.quic import fence as fence_module

__all__ = [
    "ALPN",
    "BATCH",
    "AgentConfig",
    "ClientConfig",
    "Datagram",
    "Deadlines",
    "Load",
    "MoveCommand",
    "NamedTls",
    "NodeAgent",
    "Orchestrator",
    "OrchestratorConfig",
    "Outcome",
    "Server",
    "ServerCommand",
    "ServerConfig",
    "StartCommand",
    "Step",
    "bound_to",
]

Server = server_module.QuicServer


class NamedTls(TlsFiles, frozen=True, kw_only=True):
    """Credentials that are a name: simulated connections prove it without keys."""

    def load(self) -> Identity:
        return Identity(authority=b"", certificate=self.certificate.encode(), key=self.certificate.encode())

    @classmethod
    def of(cls, name: str) -> NamedTls:
        """The credentials of a party."""
        return cls(authority="", certificate=name, key=name)


@contextmanager
def bound_to(
    *, grpc: Any, files: Any, udp_port: Any, path: Any, event_log: Any, sockets: Any, thread: Any
) -> Iterator[None]:
    """While this lasts, the code stands on simulated RPC, disks, UDP ports and raw sockets."""
    with ExitStack() as patches:
        for target, name, value in (
            (channel_module, "grpc", grpc),
            (journal_module, "os", files),
            (fence_module, "os", files),
            (server_module, "UdpPort", udp_port),
            (server_module, "Path", path),
            (shell_module, "Path", path),
            (shell_module, "os", files),
            (shell_module, "EventLog", event_log),
            (shell_module, "gc", mock.Mock()),  # gc.freeze would keep every world for ever
            # it warms up caches of a real process, and needs a clock that runs on while it does
            (server_module, "Rehearsal", mock.Mock()),
            (server_module, "Collector", mock.Mock()),  # it would put off the collection of this process
            (forwarder_module, "socket", sockets),
            (forwarder_module, "_thread", thread),
            # the filter of a tap: nothing else than the service's datagrams comes here
            (forwarder_module, "packet_filter", mock.Mock()),
            (waiting_room_module, "socket", sockets),
            (agent_module, "hold_back_port_unreachable", lambda _: None),  # clients here hear of no ICMP
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        yield


#: directory inside the container in which state files lie
STATE_DIR = str(agent_module.STATE_DIR)
