"""What the topologies are built with.

- ``access``     clients with an access of their own
- ``addresses``  the same network in IPv4, in IPv6 or with both
- ``family``     a family of topologies: its parameters, and what is built of them
- ``quality``    what a run asks of the links besides: bursts, reordering, traces, cuts
- ``roundtrips`` what the links of a topology add up to, and whether everybody can reach whom he must
- ``sites``      edge sites along a road or around a ring
- ``toml_file``  a topology of one's own, from a TOML file
"""
