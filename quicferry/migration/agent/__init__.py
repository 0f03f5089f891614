"""The node agent of an edge host.

``agent`` is the process, with its RPC methods and its container; ``config`` is what it is told. ``source``
(with ``source_move``) and ``destination`` are its two sides of a move, ``context`` what both are given.
``transfer`` cuts and checks the checkpoint's bytes on their way. ``failpoints`` makes an agent fail on
purpose, for fault injection.

From outside: ``agent.NodeAgent``, ``config.AgentConfig`` and ``failpoints.Failpoints``.
"""
