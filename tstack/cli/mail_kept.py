"""From settings to the place where whole mails are kept, for mail that comes in and for mailboxes that are watched."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tstack.cli import settings as declared
from tstack.env import Values
from tstack.mail.blobs import BlobLimits, Blobs, Keeper, blob_key
from tstack.mail.s3 import Bucket, S3Blobs


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
