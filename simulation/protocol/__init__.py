"""The protocol's world: real connections at both ends, a simulated network, a server that moves."""
