"""Engines: how the server's state gets from one host to another; ``base`` has the interface."""
