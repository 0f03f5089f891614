"""One run of an experiment: what it needs, how it is played, where its data are kept.

================== =====================================================================
``launch``         from outside: preflight, private root, and the complete run directory
``run``            from inside the private root: deploy, capture, start, move, collect
``context``        what the services of a run are given, and the interfaces they implement
``store``          the folder of runs
``preflight``      every probe of the machine, and the check before a run
``service_probes`` what the baselines need of the machine
``faults``         which faults there are, and where the server must be afterwards
``fault_kinds``    what each kind of fault does
``fault_injector`` does it at its point of the move
``usage``          descriptors and memory that processes hold
================== =====================================================================
"""
