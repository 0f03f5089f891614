"""The command line: one module per command, no logic beyond parsing and printing."""
