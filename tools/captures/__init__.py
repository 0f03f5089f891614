"""The ends that play for ``tools/make_captures.py``, each a program of its own."""
