"""rsync between two edge hosts, as the engines ``published-…`` use it."""

import pytest

from tests.e2e.migration.criu_scripts import played

pytestmark = pytest.mark.needs("veth", "rsync")


@pytest.mark.parametrize("network", ["10.9.0", "fd00:9:"], ids=["IPv4", "IPv6"])
def test_files_and_links_arrive_as_they_are(tmp_path, network):
    dot, prefix = (".", 24) if "." in network else (":", 64)
    got = played(
        """
from quicferry.migration.criu import rsync
from quicferry.process import run

def configure(edge, *words):
    run(["nsenter", "-t", str(edge.init_pid), "-n", "ip", *words])

async def play():
    first, second = (Container.create(name, enter=OWN_NETWORK) for name in ("edge-1", "edge-2"))
    async with await first as a, await second as b:
        pair = ["type", "veth", "peer", "name", "e2", "netns", str(b.init_pid)]
        run(["ip", "link", "add", "e1", "netns", str(a.init_pid), *pair])
        for edge, name, address in ((a, "e1", "HOST1/PREFIX"), (b, "e2", "HOST2/PREFIX")):
            configure(edge, "address", "add", address, "dev", name, *NODAD)
            configure(edge, "link", "set", name, "up")
        daemon = rsync.RsyncDaemon(b)
        await daemon.start()
        sent = 0
        for name in ("pre-dump", "images"):
            made = a.path(f"/run/state/{name}")
            made.mkdir(parents=True)
            (made / "pages-1.img").write_bytes(name.encode() * 1000)
            # as CRIU links images to those that they build upon, and as a container's own files may be linked
            (made / "parent").symlink_to("../pre-dump")
            (made / "absolute").symlink_to("/etc/hosts")
            sent += await rsync.copy(a, [f"/run/state/{name}"], "HOST2", timeout_s=30)
        await daemon.stop()
        come = b.path("/run/state/images")
        return dict(
            sent=sent,
            links={name: str((come / name).readlink()) for name in ("parent", "absolute")},
            pages=(come / "pages-1.img").read_text(),
            before=(come / "parent" / "pages-1.img").read_text(),
        )
""",
        tmp_path,
        HOST1=f"{network}{dot}1",
        HOST2=f"{network}{dot}2",
        PREFIX=str(prefix),
        NODAD='["nodad"]' if prefix == 64 else "[]",
    )
    assert got["links"] == {"parent": "../pre-dump", "absolute": "/etc/hosts"}
    assert (got["pages"], got["before"]) == ("images" * 1000, "pre-dump" * 1000)
    assert got["sent"] > 0
