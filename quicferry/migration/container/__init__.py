"""The container in which a server lives on its edge host: namespaces, processes, files.

``processes`` looks into a container and runs programs there; ``container`` makes one and keeps it;
``init`` is the program with PID 1 in it (a script of its own, never imported for its functions).
``oci_container`` has runc run the server in an OCI container inside, by an ``oci_bundle``.
``descriptors`` and ``readiness`` are about file descriptors that come from other processes.

From outside: ``Container``, ``OciContainer``, ``Completed``, and the functions of the last two modules.
"""
