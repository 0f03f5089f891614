"""The processes of a run, and what the runner holds of them.

Processes, each ``python -m MODULE --config FILE``:

- ``server/``        the QUIC server that moves; its shell and service serve the baselines' servers as well
- ``client/``        the clients, their load and its workloads
- ``agent``          the node agent of an edge (the work is ``quicferry.migration.agent``)
- ``orchestrator``   the orchestrator (the work is ``quicferry.migration.orchestrator``)

Shared by processes: ``config`` (their JSON files), ``reporting`` (what they print), ``udp`` (a port that
can be muted and drained), ``workload`` (the application protocol between client and server).

``deployment/`` is no process: it is what a run starts them with. It knows them by module name and
configuration; nothing in ``server/`` or ``client/`` imports it, nor do they import each other.
"""
