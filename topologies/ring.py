"""A metro ring: edge sites whose routers form a circle, so that each has two ways to every other.

Drawn and described in ``topologies.building.sites``. The state of the server crosses the links between the
sites, which clients' packets to far edges cross as well. Stock Mininet can build it:
``.venv/bin/mn --custom topologies/ring.py --topo ring,edges=5`` (with netem).
"""

from __future__ import annotations

from topologies.building.sites import family

FAMILY = family(
    "ring",
    "edge sites around a metro ring, the client at the first of them, N edges",
    usual=4,
    least=3,
    closed=True,
)

topos = FAMILY.mininet_topos()
