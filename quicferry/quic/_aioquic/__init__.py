"""The one room that touches aioquic's private members.

``connection.py`` overrides methods of ``QuicConnection`` and calls back (hooks); ``seam.py`` is what the
rest of the extension may ask of a connection. Every private name used here is listed, with the hash of the
source it was written against, in ``tests/contract/test_aioquic_members.py``.
"""
