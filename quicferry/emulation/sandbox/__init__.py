"""What keeps a run apart from the machine it runs on.

================ =======================================================================
``private_root`` starts a command in network, mount and PID namespaces of its own
``private_init`` the first process in there (the standard library only: it starts with each run)
``namespaces``   enters network namespaces and finds the processes in them
``ownership``    tags on the processes of a run, orphans, and ``clean``
================ =======================================================================
"""
