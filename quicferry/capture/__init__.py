"""Records what crosses the interfaces, and reads it again. Reading needs no root and no network.

============= ==========================================================================
``capture``   recorders on the hosts of a run: ``CaptureSession``
``recorder``  the program that captures on a host, with libpcap
``files/``    capture files of every kind, block by block
``pcap``      their UDP and TCP payloads: ``DatagramReader``, ``read_datagrams``
``clock``     the stamps of captures on the clock of the run
``quic/``     QUIC decrypted with the run's key log, as a data frame: ``Decryptor``, ``tabulate``
``tls``       TLS 1.3 over TCP, ``mptcp`` the data order of several subflows
``tcp_table`` both as the same data frame
``tcp_options`` the options of TCP segments, those of MPTCP among them
``timeline``  what a data frame says: useful service, gaps, round trips, packets
``layers``    the extension's frames for scapy
``run_capture`` all of a run in one pcapng with its secrets; ``merge`` the same by Wireshark's tools
``probes``    can this machine capture?
============= ==========================================================================
"""
