"""From the raw files of a run to its numbers, tables, figures and report. Needs no root and no network.

================== =====================================================================
``derive``         writes ``derived/`` of a run: ``derive``, ``read_result``
``page/``          the report over sweeps and runs, with figures that can be zoomed: ``write_page``
``report``         one page over a few runs, without script, for ``compare`` and ``demo``: ``write_report``
``run_text``       one run on the terminal
``figures/``       timelines and comparisons, drawn with matplotlib
``describe``       one run as titled rows with units, for ``report`` and ``run_text``
``export``         many runs as CSV, Parquet, JSON or LaTeX
``tidy``           many runs as one table, a row each, and what its columns mean
``tables``         tables over many runs for the terminal
``analyse``        one run: ``analyse`` gives an ``Analysis`` and writes nothing
``repeated_moves`` several moves in one run, and what processes kept of them
``requests_hit``   service times of the request that a move hit, and of the first after it
``breakdown``      what a reconnecting client's service-migration time is made of
``verdict``        whether the run may be called a success
``metrics``        the numbers of one move: ``measure``, ``Metrics``
``endpoint_split`` which packets belong to the old endpoint, which to the new one
``statistics``     medians and their intervals
``event_queries``  the first and the last event of a name
================== =====================================================================

Each may import what stands below it. Commands use the first five, ``figures.comparison``, ``analyse``
and ``tables``.
"""
