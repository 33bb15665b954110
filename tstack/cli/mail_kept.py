"""From settings to the place where whole mails are kept, for mail that comes in and for mailboxes that are watched."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from tstack.cli import settings as declared
from tstack.env import Values
from tstack.mail.blob_http import BlobListener
from tstack.mail.blobs import BlobLimits, Blobs, Keeper, blob_key
from tstack.mail.s3 import Bucket, S3Blobs

log = logging.getLogger("tstack.mail")


@contextlib.asynccontextmanager
async def kept_mails(values: Values, *, served: bool) -> AsyncIterator[Keeper | None]:
    """A bucket where one is set, else a folder in the data directory if it is `served` by some listener; None: nowhere.

    Raises `Failure`."""
    keeper: Blobs | S3Blobs
    if values[declared.S3_URL]:
        bucket = Bucket(
            values[declared.S3_URL], values[declared.S3_KEY], values[declared.S3_SECRET], values[declared.S3_REGION]
        )
        keeper = S3Blobs(bucket, values[declared.BLOB_KEEP])
    elif served:
        data_dir = Path(values[declared.DATA_DIR])
        limits = BlobLimits(keep=values[declared.BLOB_KEEP], size=values[declared.BLOB_SIZE])
        url = values[declared.BLOB_URL].rstrip("/")
        keeper = Blobs(data_dir / "blobs", blob_key(data_dir / "blobs.key"), limits, url)
    else:
        yield None
        return
    try:
        await keeper.start()
        yield keeper
    finally:
        await keeper.stop()


@contextlib.asynccontextmanager
async def blob_listeners(values: Values, keeper: Keeper | None) -> AsyncIterator[list[BlobListener]]:
    """What serves kept mails at -blobaddr; nothing when they are in a bucket, or kept nowhere. Raises `Failure`."""
    listeners: list[BlobListener] = []
    if not isinstance(keeper, Blobs):
        yield listeners
        return
    async with contextlib.AsyncExitStack() as parts:
        for where in values[declared.BLOB_ADDR]:
            listener = BlobListener(keeper, where)
            parts.push_async_callback(listener.stop)
            address = await listener.start()
            log.info("kept mails are at http://%s", address)
            keeper.url = keeper.url or f"http://{address}"
            listeners.append(listener)
        yield listeners
