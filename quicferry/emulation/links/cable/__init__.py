"""The userspace cable: one process that carries the frames of all shaped links of a run.

Each link has two *wire ends*, the inner ends of two veth pairs whose outer ends are the hosts'
interfaces. The cable reads a frame at one wire end together with the kernel's receive stamp,
decides when the other end may have it (or that it is lost), waits, and writes it there. A capture
at a host therefore shows when that host really sent or received a frame.

============== =======================================================================
``config``     what the process is told and what it tells: msgspec structures
``lanes``      each direction of each link as a record, and the tables it points into
``fate``       the decision for each frame: loss, queue, rate, delay, jitter (pure)
``packets``    what a frame is on a wire; a flipped bit (pure)
``due``        frames that wait for their time (pure)
``lateness``   how late frames left the cable, as a histogram (pure)
``memory``     all that the loop works on, laid out once
``loop``       read, decide, wait, write
``compiling``  which functions are compiled
``compile``    the process that compiles them
``native``     loads what was compiled
``frames``     AF_PACKET sockets
``relay``      opens the wire ends, runs the loop, counts
``__main__``   the process: scheduling class, signals, start and end
``client``     start the process, ask it for counters, end it
============== =======================================================================

From ``lanes`` to ``loop`` all is compiled to machine code (docs/adr/0021-the-cable-is-compiled.md).
"""
