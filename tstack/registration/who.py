"""Which device is asking: by the client certificate of its connection, or by name and password (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
from http import HTTPStatus

from aiohttp import web

from tstack.identity.directory import Directory, Refused
from tstack.identity.passwords import Busy
from tstack.identity.users import User
from tstack.pki.certificates import PeerCertificateError, peer_name_and_serial
from tstack.registration.errors import Later, Refusal


class NotLoggedIn(Refusal):
    """Nobody we know, or one who may not come in: the same answer for all of them."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self) -> None:
        super().__init__(
            "name and password or the client certificate are missing or not right",
            "show what the registration gave the device",
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Basic realm="treg", charset="UTF-8"'}


async def device_of(request: web.Request, directory: Directory) -> tuple[User, str]:
    """The device, and the serial of the certificate that it showed ("": it came by password).

    A certificate that is there has to be good, whatever password comes with it. Raises `NotLoggedIn`, `Later`.
    """
    transport = request.transport
    peer = transport.get_extra_info("peercert") if transport is not None else None
    try:
        if peer:
            name, serial = peer_name_and_serial(peer)
            return directory.authenticate_certificate(name, serial), serial
        name, password = _basic(request.headers.get("Authorization", ""))
        return await directory.authenticate(name, password), ""
    except (Refused, PeerCertificateError, ValueError):
        raise NotLoggedIn from None
    except Busy:
        raise Later("too many logins at once", "try again later", 1) from None


def _basic(header: str) -> tuple[str, bytes]:
    """Name and password. Raises `ValueError`."""
    scheme, _, credentials = header.partition(" ")
    if scheme.casefold() != "basic" or len(credentials) > 1024:
        raise ValueError("no Basic credentials")
    try:
        name, colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except binascii.Error:
        raise ValueError("no base64") from None
    if not colon:
        raise ValueError("no colon")
    return name.decode(), password
