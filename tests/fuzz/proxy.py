"""PROXY protocol headers: any bytes. An input is what comes first on a connection."""

from __future__ import annotations

from ipaddress import ip_address

from tests.broker.test_proxy import BAD, GOOD
from tests.fuzz.target import Target
from tstack.broker.proxy import V2_SIZE, Header, ProxyError, parse


def check(data: bytes) -> None:
    """A header, an error, or more is wanted; and that does not depend on the pieces in which it comes."""
    result = _parsed(data)
    for size in range(min(len(data), 200)):
        part = _parsed(data[:size])
        assert part is None or part == result, f"with {size} bytes it is something else"
        assert result is not None or part is None
    if isinstance(result, Header):
        assert 0 < result.size <= min(len(data), V2_SIZE)
        assert _parsed(data + b"\r\n\x10\xff") == result, "what is behind the header changes it"
        if result.source is not None:
            assert str(ip_address(result.source.host)) == result.source.host
            assert 0 <= result.source.port <= 65535
    assert result is not None or len(data) < V2_SIZE, "more is waited for than is taken"


def _parsed(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except ProxyError as error:
        return _told(error)


def _told(error: ProxyError) -> str:
    """The words must be fit for a log; which ones may depend on the pieces."""
    assert str(error).isprintable()
    return "refused"


def _seeds() -> list[bytes]:
    return [data for data, _ in GOOD.values()] + list(BAD.values())


TARGET = Target("proxy", check, _seeds, size=V2_SIZE + 100, runs=1500)
