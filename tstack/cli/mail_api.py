"""From settings to the partners' API: where it listens, how browsers reach it, and who is behind its proxies."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from aiohttp import web

from tstack.cli import settings as declared
from tstack.env import Values
from tstack.errors import UsageError
from tstack.mail.api.front import Options
from tstack.mail.api.service import Bounds
from tstack.pki.certificates import server_context
from tstack.registration.clients import Proxies, bucket


def options(values: Values) -> Options:
    """What the settings say. Raises `Failure`."""
    proxies = Proxies(map(str, values[declared.MAIL_API_PROXIES]))

    def client(request: web.Request) -> str:
        return bucket(proxies.client(request.remote or "", request.headers.getall("X-Forwarded-For", ())))

    return Options(
        addresses=values[declared.MAIL_API],
        url=_url(values[declared.MAIL_API_URL]),
        tls=_tls(values),
        local=values[declared.MAIL_API_LOCAL],
        client=client,
        bounds=Bounds(values[declared.MAIL_USERS], values[declared.MAIL_CONNECTIONS]),
    )


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    good = (
        parts.scheme in ("http", "https") and parts.hostname and text.rstrip("/") == f"{parts.scheme}://{parts.netloc}"
    )
    if text and not (good and "@" not in parts.netloc and text.isascii() and text.isprintable()):
        raise UsageError("-mailapiurl is not the URL of a host alone", "write it as in https://mail.example.com")
    return text


def _tls(values: Values) -> ssl.SSLContext | None:
    cert, key = values[declared.MAIL_API_CERT_FILE], values[declared.MAIL_API_KEY_FILE]
    if bool(cert) != bool(key):
        raise UsageError("-mailapicertfile and -mailapikeyfile go together", "give both for https, or neither for http")
    return server_context(cert, key, client="off", alpn=("http/1.1",)) if cert else None
