"""What a run holds of its processes: it writes their configurations, starts them, orders, and collects.

- ``quic``            ``QuicDeployment``, the deployment of a run with a strategy; ``Credentials``
- ``services``        ``AgentService`` and ``OrchestratorService``; ``order_move``
- ``client_service``  ``LoadClient`` and the configuration of every client
- ``replies``         the answers of long-lived programs; how often a program was started

A deployment is what ``quicferry.experiment.context.Deployment`` says. Baselines build theirs from these
services. Runs in the runner's process; nothing of it is imported by ``apps.server`` or ``apps.client``.
"""
