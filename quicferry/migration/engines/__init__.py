"""Engines: how a server becomes bytes on one host and a server again on another.

``base`` has the interface and what an engine is given; ``registry`` is the table of all engines, and the
only place to ask what an engine is or needs. ``handoff`` moves connections and service state between two
running servers; ``criu`` has the engines that move the process.

From outside: ``base`` for whoever writes an engine, ``registry`` for everybody else.
"""
