"""The service's name: a real authoritative server, signed dynamic updates, a caching resolver."""
