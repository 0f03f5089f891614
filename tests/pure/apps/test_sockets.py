"""A process with many clients may open a socket for each, or says that it may not."""

from __future__ import annotations

import resource

import pytest

from apps.client import multi_client
from apps.client.multi_client import OTHER_FILES, allow_sockets
from quicferry.errors import Unsupported

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "raised_to"),
    [
        ((1024, 4096), (2000 + OTHER_FILES, 4096)),
        ((1024, UNLIMITED), (2000 + OTHER_FILES, UNLIMITED)),
        ((4096, 4096), None),
        ((UNLIMITED, UNLIMITED), None),
    ],
)
def test_the_soft_limit_is_raised_where_it_is_too_low(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised_to: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(multi_client.resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(multi_client.resource, "setrlimit", lambda which, both: asked.append(both))
    allow_sockets(2000)
    assert asked == ([] if raised_to is None else [raised_to])


def test_a_hard_limit_that_is_too_low_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_client.resource, "getrlimit", lambda which: (1024, 1024))
    with pytest.raises(Unsupported, match="1024") as refused:
        allow_sockets(2000)
    assert "--clients" in str(refused.value.hint)
