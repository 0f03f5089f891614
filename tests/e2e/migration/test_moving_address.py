"""An address that moves, in the kernel's own words: taken and left any number of times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.support import in_private_root


@pytest.mark.needs("netns")
def test_taking_and_leaving_can_be_repeated(tmp_path: Path) -> None:
    seen = in_private_root(
        """
        import asyncio
        from quicferry.events import EventLog
        from quicferry.migration.datagrams.moving_address import MovingAddress, MovingAddressConfig
        from quicferry.process import run

        names = []

        def standing():
            return "192.0.2.1/32" in run(["ip", "-oneline", "address", "show", "dev", "lo"]).stdout

        async def play():
            log = EventLog("edge-1", sink=lambda event: names.append(event.name))
            address = MovingAddress("edge-1", MovingAddressConfig(address="192.0.2.1", here=True), log)
            await address.start()
            found = [standing()]
            for step in (address.take, address.leave, address.leave, address.take):
                await step()
                found.append(standing())
            await address.close()
            return found

        report([asyncio.run(play()), names])
        """,
        tmp_path,
    )
    assert seen == [
        [True, True, False, False, True],
        ["address.attached", "address.detached", "address.attached"],
    ]
