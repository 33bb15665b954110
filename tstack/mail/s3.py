"""Kept mails in an S3 bucket instead of a folder: the same claim check, and links that lead to the bucket itself.

Everything goes by presigned URLs (AWS Signature Version 4, query parameters): one with which we PUT, one that the event
carries, so that who fetches a mail needs no account. Any store that speaks S3 does. When mails go is a lifecycle rule of the
bucket's; a link ends after `keep`, a week at most, which is the longest that a signature may be valid.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from tstack.errors import Failure, UsageError
from tstack.mail.event import Blob

TIMEOUT = 30.0
"""Seconds for one PUT: devices wait for the answer to their mail."""

LONGEST = 7 * 86400
"""Seconds that a presigned URL can be valid."""

_UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where it is and who we are. `url`: that of the bucket, with or without a prefix for the names in it."""

    url: str
    key: str
    secret: str = field(repr=False)
    region: str = "us-east-1"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UsageError(f"{parts.hostname or 'it'} is no bucket", "as in https://BUCKET.s3.REGION.amazonaws.com")
        if not self.key or not self.secret:
            raise UsageError("a bucket needs an access key and its secret", "give -s3key and -s3secret")


def presigned(
    bucket: Bucket, method: str, name: str, now: datetime, expires: int, more: dict[str, str] | None = None
) -> str:
    """A URL that allows one method on one object for `expires` seconds from `now`; `more`: further query parameters."""
    parts = urlsplit(bucket.url)
    path = quote(f"{parts.path.rstrip('/')}/{name}", safe="/~")
    stamp, day = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}", f"{now.astimezone(UTC):%Y%m%d}"
    scope = f"{day}/{bucket.region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{bucket.key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(expires),
        "X-Amz-SignedHeaders": "host",
        **(more or {}),
    }
    asked = "&".join(f"{quote(key, safe='~')}={quote(value, safe='~')}" for key, value in sorted(query.items()))
    request = "\n".join((method, path, asked, f"host:{parts.netloc}\n", "host", _UNSIGNED))
    signing = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{bucket.secret}".encode()
    for step in (day, bucket.region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), hashlib.sha256)
    signature = hmac.digest(key, signing.encode(), hashlib.sha256).hex()
    return f"{parts.scheme}://{parts.netloc}{path}?{asked}&X-Amz-Signature={signature}"


class S3Blobs:
    """A blob store in a bucket. `await start()` before use, `await stop()` when done."""

    def __init__(self, bucket: Bucket, keep: float = LONGEST) -> None:
        """`keep`: seconds that links are valid, a week at most."""
        self._bucket = bucket
        self._keep = max(1, min(LONGEST, int(keep)))
        self.kept = 0
        """Mails that the bucket has taken since the start."""
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Get ready; nothing is asked of the bucket yet."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))

    async def stop(self) -> None:
        """Let go. May be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def put(self, data: bytes) -> Blob:
        """Keep some bytes; the bucket has them when this returns. Raises `Failure`."""
        assert self._session is not None
        name = hashlib.sha256(data).hexdigest()
        now = datetime.now(UTC).replace(microsecond=0)
        where = URL(presigned(self._bucket, "PUT", name, now, 900), encoded=True)
        try:
            async with self._session.put(where, data=data, allow_redirects=False) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Failure(f"the bucket does not take it: {type(error).__name__}") from None  # its words hold the URL
        if status != 200:
            raise Failure(f"the bucket does not take it: HTTP status {status}", "check its URL, region, key and rights")
        self.kept += 1
        answers = {
            "response-content-type": "message/rfc822",
            "response-content-disposition": f'attachment; filename="{name[:16]}.eml"',
        }
        url = presigned(self._bucket, "GET", name, now, self._keep, answers)
        return Blob(url, name, len(data), now + timedelta(seconds=self._keep))
