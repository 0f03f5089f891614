"""The userspace cable: one process that carries the frames of all shaped links of a run.

Each link has two *wire ends*, the inner ends of two veth pairs whose outer ends are the hosts'
interfaces. The cable reads a frame at one wire end together with the kernel's receive stamp,
decides when the other end may have it (or that it is lost), waits, and writes it there. A capture
at a host therefore shows when that host really sent or received a frame.

============== =======================================================================
``config``     what the process is told and what it tells: msgspec structures
``direction``  the decision for each frame: loss, queue, rate, delay, jitter (pure)
``lateness``   how late frames left the cable, as a histogram (pure)
``frames``     virtio network headers and AF_PACKET sockets
``relay``      the loop: read, decide, wait, write
``__main__``   the process: scheduling class, signals, start and end
``client``     start the process, ask it for counters, end it
============== =======================================================================
"""
