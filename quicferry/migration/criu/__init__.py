"""criu."""
