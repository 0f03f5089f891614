"""Models of the protocols, explored exhaustively: every order of every event, for small bounds.

The state machines' steps come from the tables that run (``quicferry/migration/states.py`` and
``quicferry/quic/tables.py``); what is around them (what is written down when, who asks whom) is written
here once more, small enough to be read. A model finds what no seed need ever draw; it cannot find what
its text leaves out.
"""
