"""A plug-in's module can be run as a server: its name and its folder reach the container."""

from pathlib import Path

import pytest

from quicferry import plugins
from tests.e2e.support import in_private_root


@pytest.mark.parametrize(
    ("container", "make"),
    [
        pytest.param("container", "Container.create"),
        pytest.param("oci_container", "OciContainer.make", marks=pytest.mark.needs("oci")),
    ],
)
def test_a_server_of_a_plugin_runs(tmp_path: Path, container: str, make: str) -> None:
    plugin = tmp_path / "plugged" / "beamed_server.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "import time\nfrom quicferry import plugins\n"
        "if __name__ == '__main__':\n"
        "    print('beamed', *plugins.paths(), flush=True)\n    time.sleep(60)\n"
    )
    got = in_private_root(
        f"""
        import asyncio
        from quicferry import plugins
        from quicferry.migration.container.{container} import {make.split(".")[0]}

        async def play():
            plugins.load(plugins.paths()[0])
            box = await {make}("edge-1")
            try:
                pid = await box.start([sys.executable, "-m", "beamed_server"])
                log = box.path(box.log_path(pid))
                async with asyncio.timeout(20):
                    while not log.exists() or "\\n" not in log.read_text():
                        await asyncio.sleep(0.02)
                return log.read_text()
            finally:
                await box.close()

        report(asyncio.run(play()))
        """,
        tmp_path,
        env={plugins.VARIABLE: str(plugin)},
    )
    assert got == f"beamed {plugin}\n"
