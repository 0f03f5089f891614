"""mininet."""
