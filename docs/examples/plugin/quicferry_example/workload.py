"""``poisson``: requests at random times, as those of many independent users are."""

from __future__ import annotations

import asyncio
import random

from apps.client.workloads import LoadDriver, Workload


async def drive(load: LoadDriver) -> None:
    """Send requests with exponentially distributed times between them, ``interval_s`` in the mean."""
    draw = random.Random(load.seed)
    while True:
        load.request()
        if load.interval_s > 0:
            await asyncio.sleep(draw.expovariate(1 / load.interval_s))
        else:
            await load.next_answer()


WORKLOAD = Workload(
    name="poisson", summary="Exponential times between requests, interval_ms in the mean.", drive=drive
)
