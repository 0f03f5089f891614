"""One of each that can be added to quicferry from outside: a module each, named in ``pyproject.toml``."""
