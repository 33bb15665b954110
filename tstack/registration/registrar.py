"""Makes devices: a name, credentials, and the records that say so, all written in one commit or not at all.

Everything is made before anything is written. One commit holds the user, the index entry of its certificate, the hardware
id, the answer for a repetition, the audit entry and the count: a crash leaves all of them or none. Each that must be new is
written on the condition that it is, so two processes never give a name twice, nor a device two names; when that does not
hold, everything is looked at again. Passwords and private keys exist only in the answer, and sealed for who asked for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from tstack.identity.audit import Audit, Entry
from tstack.identity.keys import RegistrationKey, allow_key, hardware_key
from tstack.identity.renewal import SUPERSEDED
from tstack.identity.revoked import revocations
from tstack.identity.users import User, now_text, user_key
from tstack.pki.authority import Authority
from tstack.registration.approval import Approval
from tstack.registration.batch import Batch
from tstack.registration.errors import BadRequest, Conflict, Forbidden, Later, QuotaUsedUp
from tstack.registration.leases import Hourly
from tstack.registration.limits import Limits
from tstack.registration.making import Made, Maker, Password, public_digest
from tstack.registration.names import random_name
from tstack.registration.replay import KEPT_SECONDS, Replay
from tstack.registration.wanted import Registered, Waiting, Wanted
from tstack.store.interface import Change, Put, Store, StoreError

log = logging.getLogger("tstack.registration")

SAME_KEPT = 4
"""Certificates for the same key that a device keeps when it comes again and again; older ones are revoked."""

ANSWERS = 10_000
"""Answered requests that a process remembers (about 1 MB): a repetition of one of these costs no attempt in vain."""


@dataclass(frozen=True, slots=True)
class _Hardware:
    """What a hardware id has become: the user (None: deleted) and the record that says so."""

    user: User | None
    public_digest: str
    revision: int


@dataclass(frozen=True, slots=True)
class _Job:
    """One request on its way."""

    wanted: Wanted
    key: RegistrationKey
    client: str
    replay: Replay | None
    also: tuple[Change, ...] = ()


class Registrar:
    """Makes users of devices."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        broker_url: str,
        ca_pem: str,
        validity: timedelta,
        limits: Limits,
        audit: Audit | None = None,
        pick_name: Callable[[], str] = random_name,
        free: Callable[[str], int | None] = lambda name: 0,
        is_known: Callable[[str, str], bool] = lambda key, hardware_id: True,
    ) -> None:
        """`free` says which revision the record of a name has that may be given, as far as is known: 0 when there is none, that
        of a tombstone when the name is no longer held; None when it may not be given. `is_known` knows most hardware ids that
        have a device (by the name of the registration key). Both save round trips; the store knows all.
        """
        self._store = store
        self._limits = limits
        self._audit = audit or Audit(store)
        self._pick_name = pick_name
        self._free = free
        self._is_known = is_known
        self._maker = Maker(authority, broker_url=broker_url, ca_pem=ca_pem, validity=validity)
        self._batch = Batch(store)
        self._leases = Hourly(store, KEPT_SECONDS)
        self.approval = Approval(store, limits)
        self._in_flight: set[str] = set()
        self._answers: dict[str, None] = {}  # the latest requests that were answered here
        self._working = 0

    async def start(self, timeout: float) -> None:
        """Begin to follow what is in the store. Raises `StoreUnavailable` after `timeout` seconds."""
        await self.approval.start(timeout)

    async def close(self) -> None:
        """Let what is being written be written, and end the threads. May be called twice."""
        await self._batch.close()
        await self.approval.stop()
        self._maker.close()

    async def register(self, wanted: Wanted, key: RegistrationKey, client: str = "") -> Registered | Waiting:
        """A device, written to the store; or word that somebody has to approve of it. `client` is its address.

        Raises a `Refusal` when the key does not allow it, `Later` when too many are at work or no name is free, and
        `StoreUnavailable`; then it is not known whether there is such a device, and the same request with the same idempotency
        key tells.
        """
        if self._working >= self._limits.registering:
            raise Later("too many registrations at once", "try again later", 1, limit="registering")
        replay = Replay(wanted) if wanted.idempotency_key else None
        if replay is not None and replay.id in self._in_flight:
            raise Conflict(
                "the same request is being worked on", "wait a second and send it again", kind="in-flight", retry=1
            )
        self._working += 1
        if replay is not None:
            self._in_flight.add(replay.id)
        try:
            return await self._register(_Job(wanted, key, client, replay))
        finally:
            self._working -= 1
            if replay is not None:
                self._in_flight.discard(replay.id)

    async def _register(self, job: _Job) -> Registered | Waiting:
        password: Password | None = None
        for attempt in range(self._limits.name_attempts):
            look = attempt > 0 or self._may_be_known(job)
            answered = await self._answered(job) if look else None
            if answered is not None:
                return answered
            await self._check(job)
            known = await self._hardware(job) if look else None
            if known is not None and known.user is not None:
                _check_repeat(job, known.user, known.public_digest)
            if job.key.approval:
                decided = await self.approval.ask(job.wanted, job.key, job.client, job.replay)
                if isinstance(decided, Waiting):
                    return decided
                job = replace(job, also=(decided,))
            password = password or await self._maker.password(job.wanted)
            try:
                made = await self._make(job, known, password)
            except QuotaUsedUp:
                if attempt > 0 or not (job.wanted.hardware_id or job.replay):
                    raise
                continue  # the last one may have been this very device, a moment ago
            if made is not None:
                return made
        log.error("no free name found in %d attempts", self._limits.name_attempts)
        raise Later(
            "no free name was found",
            "nearly every name is taken; tell whoever runs the service",
            60,
            limit="name_attempts",
        )

    def _may_be_known(self, job: _Job) -> bool:
        """Could this request or this device have been here before, as far as is known without a look-up in the store?

        What it does not see, the conditions of the commit do, and then everything is looked up.
        """
        if job.key.approval or job.key.allow_list:  # these would be asked once more for what was granted already
            return True
        if job.replay is not None and job.replay.id in self._answers:
            return True
        return bool(job.wanted.hardware_id) and self._is_known(job.key.name, job.wanted.hardware_id)

    async def _check(self, job: _Job) -> None:
        """Does the key allow this at all?"""
        wanted, key = job.wanted, job.key
        if wanted.way not in key.ways:
            raise Forbidden(
                f"the registration key does not allow the way {wanted.way}", f"use {' or '.join(key.ways)}", kind="way"
            )
        if key.wants_hardware_id and not wanted.hardware_id:
            raise BadRequest("hardware_id is missing", "this registration key knows its devices by their hardware ids")
        if key.allow_list and await self._store.get(allow_key(key.name, wanted.hardware_id)) is None:
            raise Forbidden(
                "this hardware id is not on the list of the registration key",
                "ask whoever runs the service to allow it",
                kind="not-allowed",
            )

    async def _answered(self, job: _Job) -> Registered | None:
        """The answer that this very request has got before."""
        if job.replay is None:
            return None
        item = await self._store.get(job.replay.key)
        if item is None:
            return None
        return job.replay.open(item.value, broker=self._maker.broker_url, ca=self._maker.ca_pem)

    async def _hardware(self, job: _Job) -> _Hardware | None:
        """Who the hardware id has become."""
        if not job.wanted.hardware_id:
            return None
        item = await self._store.get(hardware_key(job.key.name, job.wanted.hardware_id))
        if item is None:
            return None
        try:
            record = json.loads(item.value)
            name, digest = record["User"], record.get("PublicKey", "")
            held = await self._store.get(user_key(name))
            user = None if held is None else User.from_json(name, held.value, held.revision)
        except (ValueError, KeyError, TypeError, AttributeError):
            log.error("the record of a hardware id of the registration key %s makes no sense", job.key.name)
            raise Conflict("this hardware id cannot be registered", "tell whoever runs the service") from None
        return _Hardware(None if user is None or user.deleted else user, digest, item.revision)

    # -- what is written -----------------------------------------------------------------------------------------------

    async def _make(self, job: _Job, known: _Hardware | None, password: Password) -> Registered | None:
        """Make it and write it; None when something was not as it was thought to be."""
        if known is not None and known.user is not None:
            made, changes = await self._again(job, known.user, known, password)
            return made if await self._write(job, "device.rotated", made, changes, None) else None
        made, changes = self._new(job, known, password)
        return made if await self._write(job, "device.registered", made, changes, job.key) else None

    def _new(self, job: _Job, known: _Hardware | None, password: Password) -> tuple[Registered, list[Change]]:
        """A device of a name that is free, as far as is known here."""
        name, revision = self._pick_name(), 0
        for _ in range(self._limits.name_attempts):
            free = self._free(name)
            if free is not None:
                revision = free
                break
            name = self._pick_name()
        made = self._maker.credentials(name, job.wanted, job.key, password)
        now = now_text()
        user = User(
            name,
            password=made.password.hash,
            scram=made.password.scram,
            rights=job.key.rights_of(name),
            device_type=job.key.device_type or job.wanted.device_type,
            created=now,
            changed=now,
            certificates=(made.answer.serial,) if made.answer.serial else (),
            key=job.key.name,
            hardware_id=job.wanted.hardware_id,
        )
        changes: list[Change] = [Put(user_key(name), user.to_json(), revision)]
        if job.wanted.hardware_id:
            changes.append(_hardware_put(job, made, name, known.revision if known else 0))
        return made.answer, changes + _index(made)

    async def _again(
        self, job: _Job, user: User, known: _Hardware, password: Password
    ) -> tuple[Registered, list[Change]]:
        """New credentials for a device that is known. With `rotate`, all that it had before is no longer good."""
        made = self._maker.credentials(user.name, job.wanted, job.key, password)
        serials = (made.answer.serial,) if made.answer.serial else ()
        rotate = job.key.repeat == "rotate"
        kept = () if rotate else user.certificates[-(SAME_KEPT - 1) :]
        renewed = {new: old for new, old in user.renewed.items() if new in kept and old in kept}
        changed = replace(user, certificates=kept + serials, renewed=renewed, changed=now_text())
        if rotate or made.password.hash:
            changed = replace(changed, password=made.password.hash, scram=made.password.scram)
        dropped = [serial for serial in user.certificates if serial not in kept]
        revoked = await revocations(self._store, user.name, dropped, SUPERSEDED, changed.changed)
        changes: list[Change] = [Put(user_key(user.name), changed.to_json(), user.revision), *revoked]
        changes.append(_hardware_put(job, made, user.name, known.revision))
        return replace(made.answer, new=False), changes + _index(made)

    async def _write(
        self, job: _Job, event: str, made: Registered, changes: list[Change], counted: RegistrationKey | None
    ) -> bool:
        entry = Entry(
            event,
            user=made.name,
            key=job.key.name,
            serial=made.serial,
            address=job.client,
            actor=f"key:{job.key.name}",
        )
        try:
            if job.replay is not None:
                changes.append(Put(job.replay.key, job.replay.seal(made), 0, await self._leases.take()))
            written = await self._batch.commit([*changes, *job.also, await self._audit.put(entry)], counted)
        except StoreError as error:
            self._leases.refused(error)
            self._audit.refused(error)
            raise
        if written:
            self._audit.written(entry)
            if job.replay is not None:
                self._answers[job.replay.id] = None
                if len(self._answers) > ANSWERS:
                    del self._answers[next(iter(self._answers))]
        return written


def _hardware_put(job: _Job, made: Made, name: str, revision: int) -> Put:
    record = {"HardwareId": job.wanted.hardware_id, "User": name, "PublicKey": made.public_digest}
    value = json.dumps(record, separators=(",", ":")).encode()
    return Put(hardware_key(job.key.name, job.wanted.hardware_id), value, revision)


def _index(made: Made) -> list[Change]:
    return [made.record.put()] if made.record is not None else []


def _check_repeat(job: _Job, user: User, digest: str) -> None:
    """May this hardware id come again? Raises `Conflict` or `Forbidden`."""
    if user.disabled:
        raise Forbidden("the device is disabled", "ask whoever runs the service", kind="disabled")
    if job.key.repeat == "reject":
        raise Conflict(
            "this hardware id is registered already", "ask whoever runs the service to delete the device", kind="known"
        )
    if job.key.repeat == "same" and (job.wanted.public_key is None or public_digest(job.wanted.public_key) != digest):
        raise Conflict(
            "this hardware id is registered with another key", "send a CSR for the same key as before", kind="other-key"
        )
