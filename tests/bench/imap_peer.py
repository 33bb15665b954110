"""Idle mailboxes held by somebody else's library: `imap_peer.py imapclient|aioimaplib HOST PORT COUNT [CA]`.

Imports nothing of ours, since it runs in an environment of its own as well. When all mailboxes are in IDLE it prints how its
memory has grown, in bytes of RSS; then it waits until its input ends.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import ssl
import sys
import threading
from pathlib import Path

AT_ONCE = 16
"""Logins that are on their way at a time."""


def rss() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def imapclient(host: str, port: int, count: int, ca: str) -> None:
    """A thread a mailbox, as the original had."""
    from imapclient import IMAPClient

    context = ssl.create_default_context(cafile=ca) if ca else None
    gate, ready, ended = threading.Semaphore(AT_ONCE), threading.Semaphore(0), threading.Event()

    def watch(number: int) -> None:
        with gate:
            client = IMAPClient(host, port, ssl=bool(ca), ssl_context=context)
            client.login(f"peer{number}", "secret")
            client.select_folder("INBOX", readonly=True)
            client.idle()
        ready.release()
        while not ended.is_set():
            client.idle_check()

    before = rss()
    for number in range(count):
        threading.Thread(target=watch, args=(number,), daemon=True).start()
    for _ in range(count):
        ready.acquire()
    print("grown", rss() - before, flush=True)
    sys.stdin.read()


async def aioimaplib(host: str, port: int, count: int, ca: str) -> None:
    """Its own way: a client, and a task that waits for what the server pushes."""
    from aioimaplib import IMAP4, IMAP4_SSL  # type: ignore[import-not-found]

    context = ssl.create_default_context(cafile=ca) if ca else None
    gate, tasks = asyncio.Semaphore(AT_ONCE), []

    async def watch(number: int) -> None:
        async with gate:
            client = IMAP4_SSL(host, port, ssl_context=context) if ca else IMAP4(host, port)
            await client.wait_hello_from_server()
            await client.login(f"peer{number}", "secret")
            await client.select("INBOX")
            await client.idle_start(timeout=1500)
        tasks.append(asyncio.create_task(client.wait_server_push()))

    before = rss()
    await asyncio.gather(*(watch(number) for number in range(count)))
    await asyncio.sleep(0)
    print("grown", rss() - before, flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Hold them."""
    library, host, port, count, *ca = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    arguments = (host, int(port), int(count), ca[0] if ca else "")
    if library == "imapclient":
        imapclient(*arguments)
    else:
        asyncio.run(aioimaplib(*arguments))


if __name__ == "__main__":
    main()
