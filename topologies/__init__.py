"""The emulated edge topologies: one module each, and the registry that knows them."""

from topologies.registry import IP, Family, Parameter, get, names, setting

__all__ = ["IP", "Family", "Parameter", "get", "names", "setting"]
