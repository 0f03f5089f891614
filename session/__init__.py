"""What lies between a command line and the runs it asks for.

``request`` turns what was asked into one checked value, ``fit`` refuses a move that its link cannot carry
in time, ``scenario`` a file into many of them, ``session`` performs runs one after another, ``sweep`` those
of a scenario, in a store that survives whatever ends it, ``cluster`` makes them on several machines
(``remote`` on each of them), ``published`` knows the experiments that others published, ``selection`` finds
sweeps and runs by name, ``downtimes`` lets a baseline borrow a downtime, ``outcomes`` says how all of them
ended together, and ``play`` is the process inside a run's private root. Imported by ``cli``.
"""
