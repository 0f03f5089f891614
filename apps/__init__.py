"""The processes of a run: QUIC server and client, node agent, orchestrator. Thin shells around the core."""
