"""What lies between a command line and the runs it asks for.

``request`` turns what was asked into one checked value, ``session`` performs runs one after another,
``downtimes`` lets a baseline borrow a downtime, ``play`` is the process inside a run's private root.
"""
