"""Moves on a base image: little crosses, the memory is whole, and another image is refused."""

import pytest

from tests.e2e.migration.criu_scripts import check_hops, played

OF_RUNC = [
    pytest.param(engine, marks=pytest.mark.needs("oci", "oci-lazy-pages"))
    for engine in ("runc-cold", "runc-post-copy")
]
ENGINES = ["criu-cold", "criu-post-copy"]

pytestmark = pytest.mark.needs("criu", "criu-lazy-pages")

#: For a script: puts edges on the base image that ``make`` gives, and starts a server like its twin.
ON_BASE = """
import dataclasses
from quicferry.migration.engines.registry import create
from quicferry.migration.memory.base_image import ALIKE, environment
from quicferry.migration.memory.twin import base_of, in_a_container

os.environ["QUICFERRY_BASE_IMAGES"] = "STORE"
ENV = environment(os.environ)

def like(mib):
    return [*ALIKE, "sh", "-c", 'echo >/run/ready && exec "$@"', "sh", sys.executable, str(SERVER), mib]

def in_oci():
    return OciContainer.make("base-image", enter=OWN_NETWORK)

async def image(make=in_a_container):
    return await base_of(like("1"), ENV, {"/run/seen.json": b"{}"}, "/run/ready", make)

def put_on_base(edge, make=image):
    edge.engine = create(edge.engine.name, dataclasses.replace(edge.engine._context, base_image=make))

async def start(edge):
    await edge.container.start(like("5"), env=ENV)
    assert await edge.ask() is not None
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_moves_on_a_base_image_there_and_back(tmp_path, engine):
    got = played(
        ON_BASE
        + """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await start(a)
        without = [len(chunk) async for chunk in a.engine.checkpoint(order(1, a, b))]
        await a.engine.resume_source(order(1, a, b), "only to see how much it is")
        for edge in (a, b):
            put_on_base(edge)
        move = order(2, a, b)
        await prepare(move, a, b)
        with_it = []
        async def counted():
            async for chunk in a.engine.checkpoint(move):
                with_it.append(len(chunk))
                yield chunk
        before = await a.ask()
        await b.engine.restore(move, counted())
        drained = await settle(move, a)
        after = await b.ask()
        return dict(
            before=before, after=after, without=sum(without), with_it=sum(with_it) + drained["bytes"],
            sent=a.details("migration.checkpoint")[-1], restored=b.details("migration.restore")[-1],
            made=sorted(path.suffix for path in Path("STORE").iterdir()),
        )
""",
        tmp_path,
        ENGINE=engine,
        STORE=str(tmp_path / "store"),
    )
    assert got["after"]["sha256"] == got["before"]["sha256"]
    assert got["after"]["requests"] == got["before"]["requests"] + 1
    assert got["sent"]["base_image"] is True
    assert got["restored"]["rounds"] >= 1
    assert got["made"] == ["", ".lock"], "one image for both edges"
    if engine == "criu-cold":
        # 5 MiB are random and not in the image; of the rest little is not
        assert 5 << 20 < got["with_it"] < got["without"] - (1 << 20)


HOPS = (
    ON_BASE
    + """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await start(a)
        for edge in (a, b):
            put_on_base(edge, WITH)
        return await hops(a, b, MOVES)
"""
)


def hopped(directory, engine, moves, with_image="image"):
    """What the hops returned; there was one service all along."""
    store = str(directory / "store")
    got = played(HOPS, directory, ENGINE=engine, STORE=store, WITH=with_image, MOVES=str(moves))
    check_hops(got, moves)
    assert len({answer["sha256"] for answer in got["seen"]}) == 1
    return got


@pytest.mark.parametrize("engine", OF_RUNC)
def test_a_container_moves_on_the_base_image_of_a_container_there_and_back(tmp_path, engine):
    got = hopped(tmp_path, engine, 2, with_image="lambda: image(in_oci)")
    assert all(detail["base_image"] for detail in got["taken"])
    assert [detail["rounds"] >= 1 for detail in got["restored"]] == [True, True]


@pytest.mark.parametrize("engine", ENGINES)
def test_several_hops_on_a_base_image(tmp_path, engine):
    hopped(tmp_path, engine, 3)


@pytest.mark.parametrize("at_destination", ["another", "none"])
def test_a_destination_with_another_base_image_refuses_and_the_source_goes_on(tmp_path, at_destination):
    got = played(
        ON_BASE
        + """
async def play():
    async with edges("edge-1", "edge-2", engine="criu-cold") as (a, b):
        await start(a)
        before = await a.ask()
        put_on_base(a)
        if "WHICH" == "another":
            known = await image()
            put_on_base(b, lambda: asyncio.sleep(0, known._replace(sha256="0" * 64)))
        move = order(1, a, b)
        await prepare(move, a, b)
        try:
            await b.engine.restore(move, a.engine.checkpoint(move))
            error = hint = None
        except MigrationError as failure:
            error, hint = str(failure), failure.hint
        await b.engine.abandon_destination(move, "it failed")
        await a.engine.resume_source(move, "it failed")
        return dict(before=before, after=await a.ask(), error=error, hint=hint, left=b.running())
""",
        tmp_path,
        WHICH=at_destination,
        STORE=str(tmp_path / "store"),
    )
    assert "base image" in got["error"]
    assert "--no-base-image" in got["hint"]
    assert got["left"] == []
    assert got["after"]["sha256"] == got["before"]["sha256"]
    assert got["after"]["orders"] == ["Freeze", "Abort"]


def test_a_server_that_cannot_be_started_gives_no_image(tmp_path):
    got = played(
        ON_BASE
        + """
async def play():
    try:
        await base_of(["sh", "-c", "echo broken >&2; exit 3"], ENV, {}, "/run/ready")
    except MigrationError as failure:
        return dict(error=str(failure), hint=failure.hint, made=[str(p) for p in Path("STORE").glob("*/")])
""",
        tmp_path,
        STORE=str(tmp_path / "store"),
    )
    assert "broken" in got["error"]
    assert "--no-base-image" in got["hint"]
    assert got["made"] == []
