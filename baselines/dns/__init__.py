"""The service's name: a real authoritative server, signed dynamic updates, a caching resolver.

For baselines whose client finds the server again by its name; no baseline by itself.

- ``deployment``  ``DnsDeployment``: the server moves, then its name is updated
- ``services``    the name server and the updater as services of a deployment, the resolver's configuration
- ``config``      what the processes are told
- ``nameserver``  BIND's named with one zone, a process
- ``updater``     what sends the updates, a process
- ``resolver``    the cache inside a client
"""
