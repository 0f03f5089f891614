"""Emulation: the network, its links and hosts, and the private root in which all of it lives."""
