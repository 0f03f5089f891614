"""datagrams."""
