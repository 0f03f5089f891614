"""An edge chain along a road: the client drives past the sites, and the server follows it.

Drawn and described in ``topologies.building.sites``. The state of the server crosses the links between the
sites, which clients' packets to far edges cross as well. Stock Mininet can build it:
``.venv/bin/mn --custom topologies/chain.py --topo chain,edges=5`` (with netem).
"""

from __future__ import annotations

from topologies.building.sites import family

FAMILY = family(
    "chain",
    "edge sites along a road, the client at the first of them, N edges",
    usual=3,
    least=2,
    closed=False,
)

topos = FAMILY.mininet_topos()
