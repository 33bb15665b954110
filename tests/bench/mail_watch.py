"""`python -m tests.bench.mail_watch [memory|rates|cut|share ...] [--quick] [--write]`: the mail watchers on this machine.

* memory: of an idle mailbox, plain and TLS, beside IMAPClient with a thread a mailbox and aioimaplib on the same server.
* rates: from the server's EXISTS to the event at an MQTT subscriber, and mails a second on one core.
* cut: until a watcher in IDLE notices that the path is cut, or that the server hangs.
* share: until a killed watcher's mailboxes are watched again, and what moves when one comes.

Measured is `tmail` as anybody starts it, a process of its own, on etcd and beside `tserve`; its mail server is
`tests.bench.imap_server`.
A quarter of an hour for everything; `--quick` is a look at each, small, and no result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench import mail_figures
from tests.bench.mail_cut import cut
from tests.bench.mail_figures import Figure
from tests.bench.mail_memory import memory
from tests.bench.mail_rates import rates
from tests.bench.mail_share import share
from tests.bench.mail_site import open_files
from tstack.errors import Failure

PARTS: dict[str, Callable[[Path, bool], Iterator[Figure]]] = {
    "memory": memory, "rates": rates, "cut": cut, "share": share,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the arguments name, all of it unless they do. 1: something could not be measured."""
    parser = argparse.ArgumentParser("python -m tests.bench.mail_watch", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="small: a look, no result")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/benchmarks.md; parts not named stay"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.part) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    open_files()
    command = " ".join(["python -m tests.bench.mail_watch", *args.part, "--write"])
    failed = False
    for name in args.part or PARTS:
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            figures: list[Figure] = []
            try:
                for figure in PARTS[name](Path(folder), args.quick):
                    figures.append(figure)
                    print(figure.row(), flush=True)
            except Failure as failure:
                print(f"bench: {name}: {failure.message}", file=sys.stderr)
                failed = True
                continue
        if not args.quick:
            mail_figures.keep(name, figures, command)
    if args.write and not args.quick:
        mail_figures.write(tuple(PARTS))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
