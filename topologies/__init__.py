"""The emulated edge topologies: one module each, and the registry that knows them."""

from topologies.registry import Family, Parameter, get, names

__all__ = ["Family", "Parameter", "get", "names"]
