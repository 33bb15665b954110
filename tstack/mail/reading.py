"""How an open folder is read: searches, times of arrival and mails, in portions that servers, and we, can bear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from tstack.mail.connection import ImapConnection, Lost, Refused
from tstack.mail.imap import commands
from tstack.mail.imap.responses import Exists, Expunge, Fetch, Folder, Response, Search, Vanished
from tstack.mail.imap.tokens import Value
from tstack.mail.message import internal_date

BATCH = 50
"""Mails in one fetch: with headers of 64 KiB at most, some 3 MB."""

PIECE = 1 << 20
"""Bytes of a whole mail in one fetch: far below what the parser takes for one literal."""

WINDOW = 20_000
"""Mails that are searched at once where the answer is one line of numbers (without RFC 4731): 220 KB of it."""

MAX_NEW = 1_000_000
"""New mails that a server may tell of at once: with more it lies, or we would be busy for days."""


_USES = frozenset(use.lower() for use in commands.USES)


class Ears:
    """What a connection has said, for whoever asked: searches, fetches, and that there is something new."""

    __slots__ = (
        "changed",
        "count",
        "dirty",
        "fetched",
        "found",
        "uses",
    )

    def __init__(self) -> None:
        self.dirty = True
        """Is it worth looking?"""
        self.count: int | None = None
        """Messages in the open folder, as far as that is known."""
        self.found: list[tuple[int, int]] | None = None
        """What a search that is under way has found, as ranges; None: there is no search, and nothing is kept."""
        self.fetched: dict[int, Fetch] = {}
        self.changed: dict[bytes, None] = {}
        """Folders that are not open of which the server told."""
        self.uses: dict[str, bytes] | None = None
        """What the server calls the folders of each use, in lower case; None: nobody wants to know."""


def hear(ears: Ears, response: Response) -> None:
    """Note what a server says, whatever is under way."""
    match response:
        case Exists():  # a count that we knew already is no news (and one may stay, when as many came as went: EXPUNGE)
            ears.dirty = ears.dirty or response.count != ears.count
            ears.count = response.count
        case Expunge() if ears.count:
            ears.count -= 1
        case Vanished():
            ears.count = None
        case Fetch() if (uid := response.uid) is not None:
            known = ears.fetched.get(uid)
            items: dict[str, Value] = {**known.items, **response.items} if known else dict(response.items)
            if len(ears.fetched) < 2 * BATCH or known:
                ears.fetched[uid] = Fetch(response.number, items)
        case Folder() if ears.uses is not None:
            ears.uses |= dict.fromkeys(response.flags & _USES, response.name)
        case Search() if ears.found is not None:  # some servers answer in many lines
            ears.found += response.numbers[: MAX_NEW + 1 - len(ears.found)]


class Reader:
    """The folder that is open on a connection. All methods raise `Refused` and `Lost`."""

    def __init__(self, connection: ImapConnection, ears: Ears) -> None:
        self._connection = connection
        self._ears = ears

    async def search(self, criteria: str, *, wide: bool = False) -> list[int]:
        """UIDs in their order, each once. `wide`: there may be very many; then it takes several searches, the last mails first,
        so that none is passed over when others go meanwhile."""
        esearch = "ESEARCH" in await self._connection.capabilities()
        exists = (self._ears.count or self._connection.session.selected.exists or 0) if wide and not esearch else 0
        parts = [criteria]
        if exists > WINDOW:
            firsts = range(1, exists + 1, WINDOW)
            parts = [f"{first}:{first + WINDOW - 1} {criteria}" for first in firsts]
            parts[-1] = f"{firsts[-1]}:* {criteria}"
        found = self._ears.found = []
        try:
            for part in reversed(parts):
                await self._connection.run(commands.uid_search(part, esearch))
        finally:
            self._ears.found = None
        if sum(last - first + 1 for first, last in found) > MAX_NEW:
            raise Lost("limit", f"the server tells of more than {MAX_NEW} mails at once")
        return sorted({uid for first, last in found for uid in range(max(1, first), last + 1)})

    async def fetch(self, uids: Iterable[int], items: Iterable[str]) -> Mapping[int, Fetch]:
        """Items of some mails, `BATCH` of them at most; those that did not come are absent."""
        self._ears.fetched.clear()
        await self._connection.run(commands.uid_fetch(commands.encode_set(uids), items))
        fetched = dict(self._ears.fetched)
        self._ears.fetched.clear()
        return fetched

    async def times(self, uids: Sequence[int]) -> dict[int, datetime | None]:
        """When some mails came in; None where the server does not say so in a way that makes sense."""
        fetched = await self.fetch(uids, ["UID", "INTERNALDATE"])
        return {uid: internal_date(fetched[uid]) for uid in uids if uid in fetched}

    async def whole(self, uid: int, size: int, limit: int) -> bytes | None:
        """A whole mail of `size` bytes, as the server says, a piece at a time; None when the server does not give it, or goes
        on above `limit`."""
        data = bytearray()
        while len(data) <= limit:
            try:
                fetched = await self.fetch([uid], [f"BODY.PEEK[]<{len(data)}.{PIECE}>"])
            except Refused:
                return None
            piece = fetched[uid].items.get("BODY[]") if uid in fetched else None
            if not isinstance(piece, bytes):
                return None
            data += piece
            if len(piece) != PIECE or len(data) == size:
                break
        return bytes(data) if len(data) <= limit else None


def batches(uids: Sequence[int], most: int = BATCH) -> list[Sequence[int]]:
    """The same in portions."""
    return [uids[at : at + most] for at in range(0, len(uids), most)]
