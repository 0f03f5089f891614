"""CRIU and runc as programs: how they are called, what they write, what their failures mean.

``command`` (dump and restore), ``page_server`` (CRIU's machinery for memory beside the downtime; with
``pipe_filter``, a program by itself) and ``runc`` run them. ``image_stream`` and ``packing`` carry image
directories between hosts, and ``received`` (files) and ``sealed`` (memory) check them by ``digest`` before
they are read; ``stats`` and ``protobuf`` read CRIU's files. ``probes`` and ``runc_probes`` find
out for ``quicferry doctor`` what works here, with the programs ``page_server_trial`` and ``runc_trial``;
``versions`` tells which programs there are.

From outside: all but ``pipe_filter`` and the trials, which are started and not imported.
"""
