"""Devices that somebody has to approve of before they get anything: the registration's side of it."""

from __future__ import annotations

import hashlib

from aiohttp import web

from tstack.identity.keys import RegistrationKey
from tstack.identity.pending import KEPT_SECONDS, PENDING_PREFIX, Pending, make_code, pending_key
from tstack.identity.users import now_text
from tstack.registration.errors import BadRequest, Forbidden, Later, NotFound
from tstack.registration.leases import Hourly
from tstack.registration.limits import Limits
from tstack.registration.making import public_digest
from tstack.registration.replay import Replay
from tstack.registration.wanted import Waiting, Wanted
from tstack.store.interface import Delete, Put, Store, StoreError
from tstack.store.mirror import Mirror

PATH = "/v1/devices/pending/"


class Approval:
    """Keeps those who wait, and says who has been approved of."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._leases = Hourly(store, KEPT_SECONDS)
        self._mirror = Mirror(store, PENDING_PREFIX, Pending.of)

    async def start(self, timeout: float) -> None:
        """Read who waits and follow it. Raises `StoreUnavailable`."""
        await self._mirror.start(timeout)

    async def stop(self) -> None:
        """Follow no more. May be called twice."""
        await self._mirror.stop()

    async def ask(self, wanted: Wanted, key: RegistrationKey, client: str, replay: Replay | None) -> Waiting | Delete:
        """What removes the entry, for the commit of the registration, when the device was approved of; else it waits.

        Raises `Forbidden` when it was rejected, `BadRequest` when nothing tells the request from another device's, `Later`
        when too many wait for this key.
        """
        id_ = self._id(wanted, key, replay)
        pending = await self._get(id_)
        if pending is None:
            pending = await self._add(id_, wanted, key, client)
        if pending.state == "rejected":
            raise _rejected()
        if pending.state == "approved":
            return Delete(pending_key(id_), pending.revision)
        return Waiting(id_, pending.code, self._limits.pending_retry_seconds)

    async def poll(self, request: web.Request) -> web.Response:
        """`GET /v1/devices/pending/<id>`: how it stands; no secret, and nothing that a device could log in with."""
        pending = await self._get(request.match_info["id"])
        if pending is None:
            raise NotFound("no device waits under this id", "register again: POST /v1/devices")
        if pending.state == "rejected":
            raise _rejected()
        if pending.state == "approved":
            return web.json_response({"status": "approved", "id": pending.id})
        return waiting_response(Waiting(pending.id, pending.code, self._limits.pending_retry_seconds))

    @staticmethod
    def _id(wanted: Wanted, key: RegistrationKey, replay: Replay | None) -> str:
        if replay is not None:
            own = replay.id
        elif wanted.public_key is not None:
            own = public_digest(wanted.public_key)
        else:
            raise BadRequest(
                "somebody has to approve of the device first, and nothing tells this request from another device's",
                "send a CSR, or the header Idempotency-Key with a random word that the device keeps until it is registered",
            )
        return hashlib.sha256(f"{key.name}\n{wanted.hardware_id}\n{own}".encode()).hexdigest()[:32]

    async def _get(self, id_: str) -> Pending | None:
        try:
            item = await self._store.get(pending_key(id_))
            return None if item is None else Pending.of(item)
        except ValueError:
            return None

    async def _add(self, id_: str, wanted: Wanted, key: RegistrationKey, client: str) -> Pending:
        if sum(one.key == key.name and one.state == "waiting" for one in self._mirror.values.values()) >= (
            self._limits.pending
        ):
            raise Later(
                "too many devices wait for approval already",
                "try again when some have been decided on",
                60,
                limit="pending",
            )
        pending = Pending(
            id_,
            key.name,
            wanted.hardware_id,
            key.device_type or wanted.device_type,
            wanted.way,
            public_digest(wanted.public_key) if wanted.public_key else "",
            make_code() if key.confirm else "",
            client,
            now_text(),
        )
        try:
            await self._store.commit(Put(pending_key(id_), pending.to_json(), 0, await self._leases.take()))
        except StoreError as error:
            self._leases.refused(error)
            raise
        return await self._get(id_) or pending  # another process may have been faster, with another code


def waiting_response(waiting: Waiting) -> web.Response:
    """202: the same request again, not before Retry-After, brings what came of it (RFC 9110 15.3.3)."""
    path = PATH + waiting.id
    body = {"status": "waiting", "id": waiting.id, "poll": path} | ({"code": waiting.code} if waiting.code else {})
    headers = {"Retry-After": f"{waiting.retry_seconds:.0f}", "Location": path}
    return web.json_response(body, status=202, headers=headers)


def _rejected() -> Forbidden:
    return Forbidden("the device was rejected", "ask whoever runs the service", kind="rejected")
