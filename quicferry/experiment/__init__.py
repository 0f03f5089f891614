"""Experiments: what is asked (scenario, sweep), one run from preflight to collected data, and the store."""
