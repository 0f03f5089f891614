"""Moving the server: engines, transfer, node agents and the orchestrator."""
