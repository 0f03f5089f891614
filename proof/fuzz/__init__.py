"""Every decoder given bytes that nobody thought of: it returns, or raises what it says it raises.

``targets`` is the table of decoders, ``attempt`` calls one with bounded time and memory, ``guided`` lets
coverage choose the bytes (atheris, that is libFuzzer), ``unguided`` draws them where there is no atheris.
Inputs worth keeping are in tests/fuzz/corpus, and ``make test`` gives them to the decoders every time.
"""
