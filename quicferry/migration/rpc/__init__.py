"""Calls between agents and orchestrator.

``channel`` carries them (gRPC with msgspec), ``credentials`` has the certificates, ``peer`` adds the detour
by which an agent reaches another when their link is cut. ``messages`` lists the methods and their messages.
``tunnel`` carries the bytes of CRIU's page server between two hosts (``tunnel_messages``).

From outside: all of it.
"""
