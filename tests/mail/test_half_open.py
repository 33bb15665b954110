"""A path that is cut without a word: the kernel notices, by its keep-alive probes or by bytes that nobody acknowledges.

The mail server is in a network of its own, from which no answer comes back once it is cut.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from shutil import which

import pytest

from tests.mail.watching import BOX, Password, Told, watched
from tests.processes import ROOT, Running, lacking, need
from tstack.mail import connection
from tstack.mail.connection import KEEPALIVE, USER_TIMEOUT, Where
from tstack.mail.mailbox import Account
from tstack.mail.quirks import Deadlines, Quirks

PORT = 143
TWO_MINUTES = 120.0

PATIENT = Quirks(renew=3600.0, deadlines=replace(Deadlines(), done=3600.0, command=3600.0))
"""Nothing is noticed by what we do."""


@dataclass
class Island:
    """A network with one mail server, joined to ours by a pair of virtual Ethernet cards."""

    name: str
    ours: str
    theirs: str

    def run(self, *args: str) -> list[str]:
        """A command there."""
        return [need("ip"), "netns", "exec", self.name, *args]

    def cut(self) -> None:
        """Nothing comes back from now on; no router says so."""
        subprocess.run(self.run(need("ip"), "route", "add", "blackhole", f"{self.ours}/32"), check=True)


@pytest.fixture
def island() -> Iterator[Island]:
    if os.getuid() != 0 or which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        lacking("a network namespace takes root and ip (iproute2)")
    ip = need("ip")
    number = secrets.randbelow(1 << 14)
    name = f"ts{secrets.token_hex(5)}"  # with a letter more it is a card's, of 15 characters at most
    base = f"198.18.{number >> 6}"  # RFC 2544: for tests of networks
    ours, theirs = (f"{base}.{(number & 63) * 4 + one}" for one in (1, 2))
    inside = [ip, "-n", name]
    made = subprocess.run([ip, "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this machine lets nobody make a network namespace: {made.stderr.strip()}")
    try:
        for args in (
            [ip, "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name],
            [ip, "address", "add", f"{ours}/30", "dev", f"{name}a"],
            [ip, "link", "set", f"{name}a", "up"],
            [*inside, "address", "add", f"{theirs}/30", "dev", f"{name}b"],
            [*inside, "link", "set", f"{name}b", "up"],
        ):
            subprocess.run(args, check=True)
        island = Island(name, ours, theirs)
        flags = ["--host", theirs, "--port", str(PORT), "--users", "1", "--rate", "1", "--share", "0"]
        server = [sys.executable, "-m", "tstack.testing.chaosimap", *flags]
        with Running(island.run(*server), cwd=ROOT) as running:
            running.wait_for(f"{PORT}")
            yield island
    finally:
        subprocess.run([ip, "link", "delete", f"{name}a"], check=False, capture_output=True)
        subprocess.run([ip, "netns", "delete", name], check=True)


@pytest.mark.parametrize("said", ["nothing", "something"])
async def test_pitfall_1_and_3_a_path_that_was_cut_is_noticed(
    island: Island, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "USER_TIMEOUT", 2000)  # rules how long probes are in vain, too (tcp(7))
    if said == "nothing":
        monkeypatch.setattr(connection, "KEEPALIVE", (1, 1, 2))
    told = Told()
    account = Account(BOX, Where(island.theirs, PORT, "none"), Password())
    async with watched(PORT, told, account=account, quirks=PATIENT) as watch:
        await told.until(lambda: told.state == "connected", "it connects")
        island.cut()
        if said == "something":
            watch.try_now()  # it ends IDLE to look
        await told.until(lambda: told.state == "unavailable", "the state says so")
    assert "timed out" in told.conditions[-1].reason


def test_pitfall_1_it_takes_two_minutes_at_most() -> None:
    idle, between, count = KEEPALIVE
    assert idle + between * count <= TWO_MINUTES
    assert USER_TIMEOUT <= 1000 * TWO_MINUTES
