"""Moving a live server from one edge host to another.

The way of a move: the ``orchestrator`` orders it; the two node agents (``agent``) carry it out with each
other, by the tables of ``states``; an engine (``engines``) turns the server into bytes and back.

=============  ==================================================================================
orchestrator   decides on a move, tells the agents, finds out where the server is in the end
agent          the process on each edge host: source side, destination side, their journal
engines        how a server moves: hand-off, CRIU's four techniques, runc; ``registry`` is the table
rpc            calls between agents and orchestrator: gRPC, mutual TLS, messages, tunnel
control        orders from an agent to the server process on its own host
memory         pages: which are missing, which were written, how they come and are put in place
criu           CRIU and runc as programs: command lines, images, errors, probes
container      the namespaces in which the server lives on its host, and how to act in them
datagrams      what clients send while nobody serves: seen, forwarded, kept, replayed
journal        what a party did last, on disk
order, states  what is ordered of a move; the steps of a move as tables
=============  ==================================================================================

Imports go from the top of this table to its bottom and never back; ``pyproject.toml`` has the contract.
"""
