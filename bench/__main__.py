"""``python -m bench``: the promises of the project against this machine (``make bench``)."""

from bench.bench_migration import main

if __name__ == "__main__":
    main()
