"""Tells a capture packet by packet: of a run or of a stranger, QUIC and TCP, opened where secrets are known.

=============== ================================================================================
``sources``     what is inspected: a run's captures, or one file, and its secrets
``inspector``   goes through it once: ``Inspector``, ``Told``
``stories``     connections, paths and migrations of QUIC
``tcp_stories`` connections of TCP and MPTCP
``choices``     which packets are wanted
``sequence``    a diagram of arrows between hosts, as text and as SVG
``qlog``        a file per connection and endpoint, ``qlog_frames`` the frames in it
``telling``     all lines in the order of time, ``extras`` what else is made of the same packets
``lines``       a packet, a connection, a gap as a line of text or of JSON
=============== ================================================================================

It reads files and nothing else, in constant memory, and works without root.
"""
