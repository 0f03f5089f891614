"""Deterministic simulation of the whole project: the real code, in virtual time, from one seed.

Read from below: ``clock`` (an asyncio loop without a wall clock), ``determinism`` (where time and
randomness come from), ``process`` (what can be killed, stopped and started), ``network`` and ``disk``
(what can go wrong with them), ``history`` and ``oracle`` (what happened, and whether it was right).
``protocol`` and ``ownership`` are the two worlds; a world plays one *story*, which a seed draws.
``campaign`` plays many, ``one_loss`` those in which any one datagram is lost, ``minimise`` shortens one that
failed, ``known`` lists what is known to fail.
``models`` explores the tables of the state machines exhaustively instead.

Nothing that a run needs imports this package. docs/adr/0013-simulation.md says why it is as it is.
"""

import os

# the project imports gRPC, which logs about forks; nothing here uses it but its names
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
