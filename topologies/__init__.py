"""The emulated edge topologies: one module each, and the registry that knows them."""

from topologies.building.family import IP, Family, Parameter
from topologies.registry import get, names, setting

__all__ = ["IP", "Family", "Parameter", "get", "names", "setting"]
