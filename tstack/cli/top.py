"""`tstack top`: what a broker does now, from the metrics of its admin listener, anew each second.

Two looks at the metrics make the rates. With `--once` and `--json` they are a second apart, then there is one answer; so it is
too when the output is no terminal. The picture is plain text with a few escape sequences of ECMA-48, cut to the window.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tstack import service
from tstack.cli import settings as declared
from tstack.cli.program import Parser, start
from tstack.cli.screen import EVERY, Row, framed, screen, wants_to_leave
from tstack.env import Values
from tstack.errors import Failure, UsageError
from tstack.logs import clean

EXAMPLES = """\
  tstack top                                     the broker on this machine; q or Ctrl-C ends it
  tstack top -url=http://127.0.0.1:9884 --once   one table
  tstack top --json                              one JSON object"""

TIMEOUT: Final = 5.0
"""Seconds that an answer may take."""

MAX_PAGE: Final = 1 << 20
"""Bytes of an answer at most: a hundred times what a broker says."""

_SAMPLE = re.compile(r"([a-z_]+)(\{[^}]*\})? (\S+)")
_LABEL = re.compile(r'([a-z]+)="([^"]*)"')


@dataclass(frozen=True)
class Look:
    """All samples, by name and labels as they were written, and when that was (`time.monotonic()`)."""

    at: float
    samples: dict[str, float]

    def value(self, name: str) -> float:
        """One sample; 0 when it is not there."""
        return self.samples.get(name, 0.0)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Samples by one of their labels, summed up over the others."""
        found: dict[str, float] = {}
        for key, value in self.samples.items():
            if key.startswith(f"{name}{{"):
                text = clean(dict(_LABEL.findall(key)).get(label, ""), 40)
                found[text] = found.get(text, 0.0) + value
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Show until somebody has seen enough; exit code 1 when the broker does not answer."""
    parser = Parser("tstack top", "What a broker does now.", EXAMPLES, declared.TOP)
    parser.add_argument("-once", "--once", action="store_true", help="print one table, of a second, and end")
    parser.add_argument("-json", "--json", action="store_true", help="print one JSON object and end")
    return start(parser, declared.TOP, argv, _run)


def _run(values: Values, flags: argparse.Namespace) -> int:
    url = values[declared.ADMIN_URL].rstrip("/")
    if not _is_url(url):
        raise UsageError(f"-url: {url!r} is no URL of an admin listener", "give one such as http://127.0.0.1:9883")
    first = look(url)
    if flags.once or flags.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        time.sleep(EVERY)
        second = look(url)
        if flags.json:
            print(json.dumps(summary(first, second) | {"url": url, "metrics": second.samples}))
        else:
            print("\n".join(f"{row.title:12} {row.text}" for row in rows(first, second)))
        return service.EXIT_OK
    _live(url, first)
    return service.EXIT_OK


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        # to ask for the port raises ValueError where there cannot be one
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not re.search(r"\s", text)
        )
    except ValueError:
        return False


# -- asking --------------------------------------------------------------------------------------------------------------


def look(url: str) -> Look:
    """Ask the broker. Raises `Failure` when it does not answer, or is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine
    hint = "is tserve running, with this address among -addrAdmin? Name another one with -url"
    try:
        with opener.open(f"{url}/metrics", timeout=TIMEOUT) as answer:
            text = answer.read(MAX_PAGE).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            raise Failure(f"{url} answers {error.code} instead of metrics", hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise Failure(f"{url} cannot be reached: {clean(text)}", hint) from None
    except Exception as error:  # noqa: BLE001 - http.client raises what it likes for what is no HTTP
        raise Failure(f"{url} does not speak HTTP: {type(error).__name__}", hint) from None
    samples = parse(text)
    if "tstack_connections" not in samples:
        raise Failure(f"{url} is no admin listener of tserve: it has no tstack_connections", hint)
    return Look(time.monotonic(), samples)


def parse(text: str) -> dict[str, float]:
    """The samples of a page in Prometheus' text format; what is none is passed over."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        found = _SAMPLE.fullmatch(line)
        if found:
            with contextlib.suppress(ValueError):
                samples[found[1] + (found[2] or "")] = float(found[3])
    return samples


# -- reckoning -----------------------------------------------------------------------------------------------------------


def summary(before: Look, now: Look) -> dict[str, object]:
    """What matters, as numbers: rates are a second's."""

    def rate(name: str) -> float:
        # a broker that was started again counts from 0
        return round(max(0.0, now.value(name) - before.value(name)) / max(now.at - before.at, 1e-3), 3)

    dropped, dropped_before = (one.by("tstack_dropped_messages_total", "reason") for one in (now, before))
    return {
        "connections": int(now.value("tstack_connections")),
        "sessions": int(now.value("tstack_sessions")),
        "subscriptions": int(now.value("tstack_subscriptions")),
        "messages_in_per_second": rate('tstack_messages_total{dir="received"}'),
        "messages_out_per_second": rate('tstack_messages_total{dir="sent"}'),
        "bytes_in_per_second": rate('tstack_bytes_total{dir="received"}'),
        "bytes_out_per_second": rate('tstack_bytes_total{dir="sent"}'),
        "logins_per_second": rate('tstack_connects_total{result="accepted"}'),
        "logins_refused_per_second": rate('tstack_connects_total{result="refused"}'),
        "dropped": {reason: int(count) for reason, count in dropped.items()},
        "dropped_per_second": round(
            max(0.0, sum(dropped.values()) - sum(dropped_before.values())) / max(now.at - before.at, 1e-3), 3
        ),
        "denied": {op: int(count) for op, count in now.by("tstack_acl_denied_total", "op").items()},
        "queued_messages": int(now.value("tstack_queued_messages")),
        "queued_bytes": int(now.value("tstack_queued_bytes")),
        "retained_messages": int(now.value("tstack_retained_messages")),
        "store_connected": now.value("tstack_store_connected") == 1,
        "store_revision": int(now.value("tstack_store_revision")),
        "users": int(now.value("tstack_users")),
        "loop_lag_seconds": now.value("tstack_event_loop_lag_seconds"),
        "cpu": rate("process_cpu_seconds_total"),
        "resident_bytes": int(now.value("process_resident_memory_bytes")),
    }


def rows(before: Look, now: Look) -> list[Row]:
    """The same for people."""
    return [*_traffic(before, now), *_trouble(before, now), *_inside(before, now)]


def _rate(before: Look, now: Look, name: str) -> float:
    return max(0.0, now.value(name) - before.value(name)) / max(now.at - before.at, 1e-3)


def _traffic(before: Look, now: Look) -> Iterator[Row]:
    def both(name: str, unit: str) -> str:
        one, other = (f'tstack_{name}_total{{dir="{way}"}}' for way in ("received", "sent"))
        came, went = (f"{amount(_rate(before, now, name), unit) + '/s':>11}" for name in (one, other))
        return f"{came} in {went} out   {amount(now.value(one), unit)} and {amount(now.value(other), unit)} since the start"

    yield Row(
        "clients",
        f"{amount(now.value('tstack_connections')):>11} connected   {amount(now.value('tstack_sessions'))} sessions   "
        f"{amount(now.value('tstack_subscriptions'))} subscriptions",
    )
    yield Row("messages", both("messages", ""))
    yield Row("bytes", both("bytes", "B"))
    yield Row(
        "queues",
        f"{amount(now.value('tstack_queued_messages')):>11} waiting   {amount(now.value('tstack_queued_bytes'), 'B')}   "
        f"{amount(now.value('tstack_retained_messages'))} retained",
    )


def _trouble(before: Look, now: Look) -> Iterator[Row]:
    def counted(title: str, name: str, label: str) -> Row:
        counts, old = now.by(name, label), before.by(name, label)
        rate = max(0.0, sum(counts.values()) - sum(old.values())) / max(now.at - before.at, 1e-3)
        worst = sorted(((count, text) for text, count in counts.items() if count), reverse=True)
        told = ", ".join(f"{text} {amount(count)}" for count, text in worst)
        return Row(title, f"{amount(rate) + '/s':>11}   {told or 'none'}", rate > 0)

    accepted, refused = (f'tstack_connects_total{{result="{one}"}}' for one in ("accepted", "refused"))
    refusals = _rate(before, now, refused)
    yield Row(
        "logins",
        f"{amount(_rate(before, now, accepted)) + '/s':>11}   {amount(refusals)}/s refused   "
        f"{amount(now.value(accepted))} and {amount(now.value(refused))} since the start",
        refusals > 0,
    )
    yield counted("dropped", "tstack_dropped_messages_total", "reason")
    yield counted("denied", "tstack_acl_denied_total", "op")
    yield counted("closed", "tstack_closed_connections_total", "reason")


def _inside(before: Look, now: Look) -> Iterator[Row]:
    if "tstack_store_connected" in now.samples:
        connected = now.value("tstack_store_connected") == 1
        yield Row(
            "store",
            f"{'connected' if connected else 'NOT CONNECTED'}   revision {now.value('tstack_store_revision'):.0f}   "
            f"{amount(now.value('tstack_users'))} users   {now.value('tstack_store_resyncs_total'):.0f} resyncs",
            not connected,
        )
    else:
        yield Row("store", "not asked: authentication is off")
    if "tstack_journal_batches_total" in now.samples:
        batches = _rate(before, now, "tstack_journal_batches_total")
        each = _rate(before, now, "tstack_journal_seconds_total") / batches if batches else 0.0
        yield Row(
            "journal",
            f"{amount(batches)} batches/s   {each * 1000:.1f} ms each   "
            f"{amount(now.value('tstack_journal_held_packets'))} packets held",
        )
    lag = now.value("tstack_event_loop_lag_seconds")
    yield Row("event loop", f"{lag * 1000:.0f} ms late at worst, of the last half minute", lag >= 0.5)
    files, most = now.value("process_open_fds"), now.value("process_max_fds")
    yield Row(
        "process",
        f"{_rate(before, now, 'process_cpu_seconds_total') * 100:.0f} % of a core   "
        f"{amount(now.value('process_resident_memory_bytes'), 'B')} memory   {amount(files)} of {amount(most)} files",
        most > 0 and files / most > 0.8,
    )
    ends = now.by("tstack_cert_expiry_seconds", "certificate")
    if ends:
        told = "   ".join(f"{name} {left / 86400:.0f} days" for name, left in sorted(ends.items()))
        yield Row("certificates", told, min(ends.values()) < 14 * 86400)


def amount(value: float, unit: str = "") -> str:
    """Three digits or so, with a prefix of the SI: `999`, `1.23 k`, `45.6 MB`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            break
        value /= 1000
    digits = 0 if abs(value) >= 99.95 or value == int(value) else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def age(seconds: float) -> str:
    """`59 s`, `12 min`, `3 h 4 min`, `12 d 3 h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


# -- the live picture ------------------------------------------------------------------------------------------------------


def picture(url: str, before: Look, now: Look, trouble: str, columns: int, lines: int) -> str:
    """One screen."""
    version = next(iter(now.by("tstack_info", "version")), "")
    running = age(time.time() - now.value("process_start_time_seconds"))
    body = [Row(row.title, f"{row.title:12} {row.text}", row.alarm) for row in rows(before, now)]
    if trouble:
        body.insert(0, Row("", trouble, True))
    return framed(f"tstack {version}   up {running}   {url}", body, columns, lines)


def _live(url: str, first: Look) -> None:
    """Show a picture each second until q or Ctrl-C; what happens to the broker meanwhile is part of the picture."""
    before = now = first
    trouble = ""
    with screen(ends_by_itself=True):
        while True:
            columns, lines = shutil.get_terminal_size()
            sys.stdout.write(picture(url, before, now, trouble, columns, lines))
            sys.stdout.flush()
            if wants_to_leave(EVERY):
                return
            try:
                before, now = now, look(url)
                trouble = ""
            except Failure as failure:
                trouble = f"NOT HEARD OF for {age(time.monotonic() - now.at)}: {failure.message}"
