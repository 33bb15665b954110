"""Admin tokens in the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.errors import Failure
from tstack.identity.audit import Audit, entries
from tstack.identity.tokens import (
    SCOPES,
    TOKEN_PREFIX,
    Token,
    Tokens,
    add_token,
    digest_of,
    list_tokens,
    name_of,
    revoke_token,
)
from tstack.store.embedded import EmbeddedStore


@given(st.sets(st.sampled_from(SCOPES)), st.sampled_from(["", "2030-01-01T00:00:00Z"]))
def test_there_and_back(scopes: set[str], expires: str) -> None:
    token = Token("ci", digest_of("ci.x"), tuple(sorted(scopes)), expires, "2026-01-01T00:00:00Z")
    assert Token.from_json("ci", token.to_json()) == token


@given(
    st.binary(max_size=80)
    | st.sampled_from(
        [
            b'{"Name":"ci"}',
            b'{"Name":"ci","Digest":5,"Scopes":[]}',
            b'{"Name":"ci","Digest":"' + b"0" * 64 + b'","Scopes":"devices:read"}',
            b'{"Name":"ci","Digest":"' + b"0" * 64 + b'","Scopes":[],"Expires":"soon"}',
            b'{"Name":"other","Digest":"' + b"0" * 64 + b'","Scopes":[]}',
            b"[" * 99999,
        ]
    )
)
def test_a_record_that_makes_no_sense_is_no_token(data: bytes) -> None:
    with pytest.raises(ValueError):
        Token.from_json("ci", data)


def test_writing_includes_reading_and_nothing_else() -> None:
    token = Token("ci", scopes=("devices:write", "audit:read"))
    assert [scope for scope in SCOPES if token.allows(scope)] == ["devices:read", "devices:write", "audit:read"]
    assert not Token("ci").allows("devices:read")


@pytest.mark.parametrize(
    ("text", "name"), [("ci.secret", "ci"), ("ci", ""), (".x", ""), ("a/b.c", ""), ("", ""), ("x" * 65 + ".y", "")]
)
def test_the_name_in_front(text: str, name: str) -> None:
    assert name_of(text) == name


async def test_a_token_is_shown_once_known_by_its_digest_and_gone_when_revoked() -> None:
    async with EmbeddedStore(":memory:") as store:
        audit = Audit(store)
        tokens = Tokens(store)
        await tokens.start(10)
        token, text = await add_token(store, audit, "ci", ["devices:read"], actor="tuser:root")
        item = await store.get(TOKEN_PREFIX + "ci")
        assert item is not None
        assert text.partition(".")[2] not in item.value.decode()
        assert text.partition(".")[2] not in repr(token)
        await until(lambda: tokens.find(text) == token)
        for wrong in (text[:-1], text + "x", text.upper(), "ci.", "ci", "", "other" + text[2:], "ci.\udcff"):
            assert tokens.find(wrong) is None
        assert await list_tokens(store) == [token]
        with pytest.raises(Failure, match="already"):
            await add_token(store, audit, "ci", ["devices:read"], actor="tuser:root")
        await revoke_token(store, audit, "ci", actor="tuser:root")
        await until(lambda: tokens.find(text) is None)
        with pytest.raises(Failure, match="no token"):
            await revoke_token(store, audit, "ci", actor="tuser:root")
        assert [(entry.event, entry.actor) async for entry in entries(store)] == [
            ("token.added", "tuser:root"),
            ("token.revoked", "tuser:root"),
        ]
        await tokens.stop()


async def test_a_token_ends_by_itself() -> None:
    async with EmbeddedStore(":memory:") as store:
        tokens = Tokens(store)
        await tokens.start(10)
        soon = datetime.now(UTC) + timedelta(seconds=1)
        _, text = await add_token(store, Audit(store), "ci", ["audit:read"], soon.isoformat(), actor="tuser:root")
        await until(lambda: "ci" in tokens.tokens)
        await until(lambda: tokens.find(text) is None)
        assert time.time() >= soon.timestamp()
        await tokens.stop()


@pytest.mark.parametrize(
    ("name", "scopes", "expires"),
    [
        ("", ["audit:read"], ""),
        ("a/b", ["audit:read"], ""),
        ("a", [], ""),
        ("a", ["audit:write"], ""),
        ("a", ["everything"], ""),
        ("a", ["audit:read"], "tomorrow"),
        ("a", ["audit:read"], "2020-01-01T00:00:00Z"),
    ],
)
async def test_what_is_no_token(name: str, scopes: list[str], expires: str) -> None:
    async with EmbeddedStore(":memory:") as store:
        with pytest.raises(Failure):
            await add_token(store, Audit(store), name, scopes, expires, actor="tuser:root")
        assert (await store.range(TOKEN_PREFIX)).items == ()


async def test_a_record_that_somebody_else_wrote_is_left_out_of_the_list() -> None:
    async with EmbeddedStore(":memory:") as store:
        await store.put(TOKEN_PREFIX + "odd", b"{}")
        assert await list_tokens(store) == []


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
