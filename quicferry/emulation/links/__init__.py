"""The links of an emulated network: made, shaped, read back and measured.

============= ==========================================================================
``layer``     ``LinkLayer`` makes veth pairs and has them shaped; ``choose_backend``
``netem``     shaping by the kernel: the request, and reading it back
``cable/``    shaping by a process of our own, where the kernel has no netem
``calibrate`` measures delay, loss and rate of each direction
``link_end``  one end of a link during that measurement
``probes``    can this machine make and shape links?
============= ==========================================================================
"""
