"""Clients, and the load they make.

- ``load``           what is sent, what came back, and whether it was right; knows no transport
- ``workloads``      how requests are spread over time: a table, open to plug-ins
- ``load_schedule``  drives a load by its workload until told to stop; the end of the load and its summary
- ``client``         one QUIC client, a process: ``python -m apps.client.client``
- ``multi_client``   many of them in one process: ``python -m apps.client.multi_client``

For import by others: ``load``, ``load_schedule`` and ``workloads`` by every client, ``client.Client`` by
clients that are a QUIC client and something more.
"""
