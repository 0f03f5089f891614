"""Generated runs: command lines drawn from the axes, run end to end, judged by rules that hold for all.

The way of a line::

    levels ──► covering ──► command ──► perform ──► judge ──► minimise ──► findings
    what to      which pair    its words   the real      what is    the shortest  new or
    draw from    comes next                `run`         wrong      line          known

``levels`` turns ``quicferry.spec.axes()`` into things to draw, ``covering`` chooses them so that every
pair of values meets, ``judge`` and its table ``overhead`` say what is right of every run, ``minimise``
puts axes back to their defaults while a line still fails, and ``findings`` tells new faults from those
in ``known.toml``.
"""
