"""What an outbox remembers of what is on disk: who is next, how much room there is, and how far everything is published.

`Lines`: entries in lines, one line a name, served in turn.

A mailbox that catches up with a hundred thousand mails must not keep the next mailbox's one mail waiting, so names take turns.
What failed comes back when it is due. In strict lines it stands in the way until then, so that a line keeps its order; in the
others what is behind it goes on.

`Room`: how much may wait, of all and of one partner; who finds no room waits.

`Unpublished`: which marks of a mailbox have nothing unpublished before them.

Only numbers are kept here; what they stand for is on disk.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from tstack.mail.folder import Mark


class Lines:
    """Numbers that wait, in lines. Times are given, in seconds of any clock that only goes forward."""

    def __init__(self, *, strict: bool, most: int = 0) -> None:
        """`most`: numbers of one line that may be out at once; 0: any number."""
        self._strict = strict
        self._most = most
        self._lines: dict[str, deque[int]] = {}
        self._turns: deque[str] = deque()
        """Names whose turn comes; each once."""
        self._here: set[str] = set()
        """The names in `_turns`."""
        self._out: dict[int, str] = {}
        self._each: Counter[str] = Counter()
        """How many of each name are out."""
        self._later: list[tuple[float, int, str]] = []
        self._stopped: Counter[str] = Counter()
        """How many of each name come back later."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values())) + len(self._out) + len(self._later)

    def add(self, name: str, numbers: Iterable[int]) -> None:
        """Put numbers, which grow, into their places in a line."""
        more = list(numbers)
        line = self._lines.setdefault(name, deque())
        if more and line and more[0] < line[-1]:
            self._lines[name] = deque(sorted((*line, *more)))
        else:
            line.extend(more)
        self._turn(name)

    def take(self, most: int, now: float) -> list[int]:
        """Up to `most` numbers, one of each line in turn. They are out until they are `settled` or come `later`."""
        while self._later and self._later[0][0] <= now:
            _, number, name = heapq.heappop(self._later)
            _less(self._stopped, name)
            self.add(name, (number,))
        taken: list[int] = []
        while self._turns and len(taken) < most:
            name = self._turns.popleft()
            self._here.discard(name)
            line = self._lines.get(name)
            if line and self._open(name):
                number = line.popleft()
                self._out[number] = name
                self._each[name] += 1
                taken.append(number)
                self._turn(name)
            if not line:
                self._lines.pop(name, None)
        return taken

    def next_due(self) -> float | None:
        """When the first of those that come back is due; None: nothing comes back."""
        return self._later[0][0] if self._later else None

    def settled(self, number: int) -> None:
        """A number that was out is done with."""
        name = self._out.pop(number, None)
        if name is not None:
            _less(self._each, name)
            self._turn(name)

    def later(self, number: int, due: float) -> None:
        """A number that was out comes back at a time."""
        name = self._out.get(number)
        if name is None:
            return
        self._stopped[name] += 1
        heapq.heappush(self._later, (due, number, name))
        self.settled(number)

    def remove(self, name: str, number: int) -> None:
        """A number is gone, wherever it waits. One that is out stays out until it is settled."""
        line = self._lines.get(name)
        if line is not None and number in line:
            line.remove(number)
            if not line:
                del self._lines[name]
        elif any(one == number for _, one, _ in self._later):
            self._later = [one for one in self._later if one[1] != number]
            heapq.heapify(self._later)
            _less(self._stopped, name)
            self._turn(name)

    def _open(self, name: str) -> bool:
        return not (self._strict and name in self._stopped) and not 0 < self._most <= self._each[name]

    def _turn(self, name: str) -> None:
        if name not in self._here and self._lines.get(name) and self._open(name):
            self._here.add(name)
            self._turns.append(name)


class Room:
    """How many entries and bytes may wait, and how many of them of one partner."""

    def __init__(self, entries: int, size: int, share: float) -> None:
        """`share`, 0 to 1: how much of both one partner may use."""
        self._most = (entries, size)
        self._most_of_one = (share * entries, share * size)
        self._used = [0, 0]
        self._by_partner: dict[str, list[int]] = {}
        self._waiters: deque[tuple[str, int, int, asyncio.Future[None]]] = deque()

    @property
    def size(self) -> int:
        """Bytes that are used."""
        return self._used[1]

    async def take(self, partner: str, count: int, size: int) -> None:
        """Wait until there is room, and use it."""
        if not self._waiters and self._fits(partner, count, size):
            self.use(partner, count, size)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((partner, count, size, waiter))
        self.let_in()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.use(partner, -count, -size)
                self.let_in()
            raise

    def use(self, partner: str, count: int, size: int) -> None:
        """Use more room, or (negative) less; call `let_in` when that is all."""
        mine = self._by_partner.setdefault(partner, [0, 0])
        for used in (self._used, mine):
            used[0] += count
            used[1] += size
        if not any(mine):
            del self._by_partner[partner]

    def let_in(self) -> None:
        """Those who wait and find room now, in the order in which they came."""
        staying: list[tuple[str, int, int, asyncio.Future[None]]] = []
        while self._waiters and self._used[0] < self._most[0] and self._used[1] < self._most[1]:
            partner, count, size, waiter = one = self._waiters.popleft()
            if waiter.done():
                continue
            if self._fits(partner, count, size):
                self.use(partner, count, size)
                waiter.set_result(None)
            else:
                staying.append(one)
        self._waiters.extendleft(reversed(staying))

    def fail(self, error: Exception) -> None:
        """There will be no room any more."""
        while self._waiters:
            waiter = self._waiters.popleft()[-1]
            if not waiter.done():
                waiter.set_exception(error)

    def _fits(self, partner: str, count: int, size: int) -> bool:
        """Is there room? What is too large for all of it is let in where nothing else is."""
        mine = self._by_partner.get(partner, (0, 0))
        return all(
            not used[0] or (used[0] + max(count, 1) <= most[0] and used[1] + size <= most[1])
            for used, most in ((self._used, self._most), (mine, self._most_of_one))
        )


class Unpublished:
    """Which events of one mailbox the broker does not have yet, and the marks that wait for them."""

    __slots__ = ("_marks", "_numbers", "_settled")

    def __init__(self) -> None:
        self._numbers: deque[int] = deque()
        self._settled: set[int] = set()
        self._marks: deque[tuple[int, str, Mark]] = deque()

    def add(self, numbers: Sequence[int]) -> None:
        """Numbers that grow."""
        self._numbers.extend(numbers)

    def mark(self, folder: str, mark: Mark) -> None:
        """Everything that was added until now is before this mark."""
        last = self._numbers[-1] if self._numbers else 0
        if self._marks and self._marks[-1][:2] == (last, folder):
            self._marks.pop()
        self._marks.append((last, folder, mark))

    def forget_marks(self) -> None:
        """The marks mean nothing any more."""
        self._marks.clear()

    def settle(self, number: int) -> None:
        """The broker has it, or it is a dead letter."""
        if self._numbers and number >= self._numbers[0]:
            self._settled.add(number)

    def safe(self) -> dict[str, Mark]:
        """The marks by folder before which nothing is unpublished any more; they are given once."""
        while self._numbers and self._numbers[0] in self._settled:
            self._settled.discard(self._numbers.popleft())
        if not self._numbers:
            self._settled.clear()
        found: dict[str, Mark] = {}
        while self._marks and (not self._numbers or self._marks[0][0] < self._numbers[0]):
            _, folder, mark = self._marks.popleft()
            found[folder] = mark
        return found

    @property
    def empty(self) -> bool:
        """Is there nothing left?"""
        return not self._numbers and not self._marks


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
