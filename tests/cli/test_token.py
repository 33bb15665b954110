"""tuser's tokens, and what else of tuser stands in the audit log."""

from __future__ import annotations

import json
from pathlib import Path

from tests.processes import command, run
from tstack.identity.audit import entries
from tstack.identity.tokens import TOKEN_PREFIX, digest_of
from tstack.store.embedded import EmbeddedStore


async def test_a_token_is_shown_once_and_everything_is_in_the_audit_log(tmp_path: Path) -> None:
    flags = [f"-data-dir={tmp_path}"]

    def tuser(*args: str, code: int = 0) -> str:
        done = run([*command("tuser"), *args, *flags])
        assert done.returncode == code, (args, done.stderr)
        return done.stdout

    tuser("add", "ann", "-generate")
    made = json.loads(tuser("token", "add", "ci", "-scopes", "devices:read,audit:read", "keys:write", "--json"))
    assert made["Scopes"] == ["devices:read", "audit:read", "keys:write"]
    assert "token: ci2." in tuser("token", "add", "ci2", "-scopes=audit:read", "-expires=2199-01-01T00:00:00Z")
    listed = tuser("token", "list")
    assert listed.splitlines() == [
        "token ci: devices:read audit:read keys:write",
        "token ci2: audit:read, until 2199-01-01T00:00:00Z",
    ]
    tuser("token", "revoke", "ci2")
    tuser("token", "revoke", "ci2", code=1)
    tuser("token", "add", "x", "-scopes=audit:write", code=1)
    tuser("token", "add", "-scopes=audit:read", code=2)
    tuser("token", "list", "x", code=2)
    for words in (
        ["disable"],
        ["enable"],
        ["expire", "-at=2199-01-01T00:00:00Z"],
        ["rights", "-rights=x/#"],
        ["passwd", "-generate"],
        ["delete"],
    ):
        tuser(words[0], "ann", *words[1:])
    async with EmbeddedStore(tmp_path / "store.db") as store:
        item = await store.get(TOKEN_PREFIX + "ci")
        assert item is not None
        assert json.loads(item.value)["Digest"] == digest_of(made["Token"])
        assert made["Token"].partition(".")[2] not in item.value.decode()
        log = [entry async for entry in entries(store)]
    assert [entry.event for entry in log] == [
        "user.added", "token.added", "token.added", "token.revoked",
        "device.disabled", "device.enabled", "device.changed", "device.changed", "device.rotated", "device.deleted",
    ]  # fmt: skip
    assert all(entry.actor.startswith("tuser") for entry in log)
