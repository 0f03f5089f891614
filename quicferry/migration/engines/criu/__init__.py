"""Engines that move the server's process by CRIU.

``base`` is what they share (how a process is stopped, kept, brought back, restored and undone).
``cold`` moves everything in the downtime; ``runc_cold`` does so for an OCI container. Pre-copy,
post-copy and hybrid come twice: ``agent_copy`` (with ``agent_copy_source`` and ``agent_copy_destination``),
in which the agents move the memory, and ``native_copy``, in which CRIU does. ``rounds`` are those of
pre-copy, ``lazy_destination`` waits for memory after a restore, ``unfinished`` is the record that lets
the next agent go on with that.

Nothing here is imported from outside but by the names in ``registry``.
"""
