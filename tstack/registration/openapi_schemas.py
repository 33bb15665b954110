"""The schemas of the OpenAPI document: what is sent and answered, with an example each."""

from __future__ import annotations

from typing import Final

from tstack.identity.audit import EVENTS
from tstack.identity.keys import REPEATS, WAYS
from tstack.registration.fleet import STATES
from tstack.registration.openapi_parts import Json, flag, many, record, text, texts, time

CERTIFICATE: Final = {
    "serial": "5b1f0c9e7d",
    "user": "KTW-482",
    "state": "valid",
    "not_before": "2026-11-21T10:00:00Z",
    "not_after": "2027-11-21T10:00:00Z",
    "fingerprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "key_algorithm": "P-256",
    "way": "csr",
    "key": "fleet-2026",
    "replaces": "",
    "revoked_at": "",
    "reason": "",
}

DEVICE: Final = {
    "name": "KTW-482",
    "state": "enabled",
    "device_type": "pump",
    "hardware_id": "00:1b:44:11:3a:b7",
    "key": "fleet-2026",
    "rights": ["KTW-482/#"],
    "has_password": False,
    "created": "2026-11-21T10:00:00.000000Z",
    "changed": "2026-11-21T10:00:00.000000Z",
    "expires": "",
    "certificates": [{"serial": "5b1f0c9e7d", "not_after": "2027-11-21T10:00:00Z", "revoked": False}],
}

ENTRY: Final = {
    "id": "1795255200000000000-0a1b2c3d4e5f",
    "time": "2026-11-21T10:00:00.000000Z",
    "event": "device.disabled",
    "user": "KTW-482",
    "address": "192.0.2.7",
    "actor": "token:dashboard",
}

KEY: Final = {
    "name": "plant-a",
    "used": 12,
    "quota": 100,
    "expires": "2027-01-31T00:00:00Z",
    "device_type": "pump",
    "rights": ["{user}/#"],
    "ways": ["csr"],
    "allow_list": False,
    "approval": True,
    "confirm": False,
    "repeat": "reject",
    "derived": False,
    "revoked": False,
    "created": "2026-11-21T10:00:00.000000Z",
    "changed": "2026-11-21T10:00:00.000000Z",
}

PENDING: Final = {
    "id": "0123456789abcdef0123456789abcdef",
    "state": "waiting",
    "key": "plant-a",
    "hardware_id": "00:1b:44:11:3a:b7",
    "device_type": "pump",
    "way": "csr",
    "fingerprint": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "address": "192.0.2.7",
    "created": "2026-11-21T10:00:00.000000Z",
    "confirm": False,
}

PROBLEM: Final = {
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "there is no device of that name",
    "hint": "GET /v1/devices lists them",
}

_AFTER: Final = text(
    "Where the next page begins: send it as `after`. Absent at the end; a page may be empty before it."
)

_DEVICE_FIELDS: Final[Json] = {
    "name": text("User name of the device."),
    "state": text("Whether it may log in.", enum=list(STATES)),
    "device_type": text("What kind of device it is."),
    "hardware_id": text("What it is by its maker."),
    "key": text("Name of the registration key that it came by."),
    "rights": texts("Topic filters that it may publish and subscribe to."),
    "has_password": flag("Can it log in by password?"),
    "created": text("When it was registered."),
    "changed": text("When its record was last changed."),
    "expires": time("When it is shut out."),
    "certificates": many("CertificateInDevice", "Its certificates, the oldest first."),
}

_KEY_FIELDS: Final[Json] = {
    "name": text("Its name, which stands in front of its secret."),
    "used": {"type": "integer", "description": "Devices that it has registered."},
    "quota": {"type": "integer", "minimum": 0, "description": "Devices that it may register in all; 0: any number."},
    "expires": time("Until when it may be used."),
    "device_type": text("What its devices are; empty: what they say."),
    "rights": texts("Rights of its devices; `{user}` stands for the device's name."),
    "ways": {"type": "array", "items": text("A way.", enum=list(WAYS)), "description": "Credentials that it gives."},
    "allow_list": flag("Only hardware ids that were allowed before?"),
    "approval": flag("Has somebody to approve of each device?"),
    "confirm": flag("Has whoever approves to type the code that the device shows?"),
    "repeat": text("What a hardware id gets that comes again.", enum=list(REPEATS)),
    "derived": flag("Has each device a secret of its own, derived from this key's?"),
    "revoked": flag("Was it revoked?"),
    "created": text("When it was made."),
    "changed": text("When it was last changed."),
}

_NEW_KEY: Final = (
    "quota",
    "expires",
    "device_type",
    "rights",
    "ways",
    "allow_list",
    "approval",
    "confirm",
    "repeat",
    "derived",
)

SCHEMAS: Final[Json] = {
    "Problem": record(
        "What was wrong, and what to do (RFC 9457).",
        {
            "type": text("Tells problems of the same status apart; `about:blank`: the status says it all."),
            "title": text("The status in words."),
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": text("What was wrong. Never a secret."),
            "hint": text("What to do about it."),
        },
        example=PROBLEM,
    ),
    "Error": record(
        "An error outside of `/v1`, in the form that it has always had.",
        {"error": text("What was wrong."), "hint": text("What to do about it.")},
        example={"error": "the registration key is wrong", "hint": "ask whoever runs the service for the key"},
    ),
    "CertificateInDevice": record(
        "A certificate as it stands in a device.",
        {
            "serial": text("Serial number, in lower-case hex."),
            "not_after": text("When it ends (RFC 3339); empty: not known."),
            "revoked": flag("Is it on the revocation list?"),
        },
    ),
    "Device": record("A device.", _DEVICE_FIELDS, example=DEVICE),
    "DeviceWithPassword": record(
        "A device with its new password.",
        {**_DEVICE_FIELDS, "password": text("The new password. It is shown this once.")},
        example=DEVICE | {"has_password": True, "password": "correct-horse-battery"},
    ),
    "Devices": record(
        "A page of devices, in the order of their names.",
        {"devices": many("Device", "The devices."), "after": _AFTER},
        optional=("after",),
        example={"devices": [DEVICE], "after": "KTW-482"},
    ),
    "Expiry": record(
        "Until when a device may log in.",
        {"expires": time("When it is shut out, with its zone.")},
        example={"expires": "2027-01-31T00:00:00Z"},
    ),
    "Certificate": record(
        "A certificate. Fields that are not known are empty.",
        {
            "serial": text("Serial number, in lower-case hex."),
            "user": text("The device that it belongs to."),
            "state": text("What it is good for now.", enum=["valid", "revoked", "ended"]),
            "not_before": text("When it begins (RFC 3339)."),
            "not_after": text("When it ends."),
            "fingerprint": text("SHA-256 of the certificate, in hex."),
            "key_algorithm": text("As in `P-256`, `RSA-2048`."),
            "way": text("How it came to be."),
            "key": text("Name of the registration key that it was got with."),
            "replaces": text("Serial number of the certificate that it takes the place of."),
            "revoked_at": text("When it was revoked."),
            "reason": text("Why it was revoked."),
        },
        example=CERTIFICATE,
    ),
    "Certificates": record(
        "A page of certificates, in the order of their serial numbers.",
        {"certificates": many("Certificate", "The certificates."), "after": _AFTER},
        optional=("after",),
        example={"certificates": [CERTIFICATE]},
    ),
    "Key": record("A registration key. Its secret is never shown again.", _KEY_FIELDS, example=KEY),
    "KeyWithSecret": record(
        "A new registration key with its secret.",
        {**_KEY_FIELDS, "secret": text("What devices show, or what theirs are derived from. It is shown this once.")},
        example=KEY | {"used": 0, "secret": "plant-a.Xq3..."},
    ),
    "NewKey": record(
        "A registration key to be made. What is absent is as if the key had no such limit.",
        {"name": _KEY_FIELDS["name"], **{name: _KEY_FIELDS[name] for name in _NEW_KEY}},
        optional=_NEW_KEY,
        example={"name": "plant-a", "quota": 100, "ways": ["csr"], "approval": True},
    ),
    "Keys": record(
        "A page of registration keys, in the order of their names.",
        {"keys": many("Key", "The keys."), "after": _AFTER},
        optional=("after",),
        example={"keys": [KEY]},
    ),
    "Allowed": record(
        "A page of hardware ids, in no order that means anything.",
        {"hardware_ids": texts("The hardware ids."), "after": _AFTER},
        optional=("after",),
        example={"hardware_ids": ["00:1b:44:11:3a:b7"]},
    ),
    "Allow": record(
        "Hardware ids to be put on a key's list, or taken off it.",
        {
            "hardware_ids": {**texts("The hardware ids."), "minItems": 1, "maxItems": 500},
            "remove": flag("Take them off?"),
        },
        optional=("remove",),
        example={"hardware_ids": ["00:1b:44:11:3a:b7"]},
    ),
    "AllowDone": record(
        "How many were put on the list, or taken off.",
        {
            "added": {"type": "integer", "description": "Put on it."},
            "removed": {"type": "integer", "description": "Taken off it."},
        },
        optional=("added", "removed"),
        example={"added": 1},
    ),
    "PendingDevice": record(
        "A device that waits for approval, or was decided on and has not come back.",
        {
            "id": text("Of the request that waits."),
            "state": text("How it stands.", enum=["waiting", "approved", "rejected"]),
            "key": text("Name of the registration key."),
            "hardware_id": text("What it says to be by its maker."),
            "device_type": text("What kind of device it is."),
            "way": text("Credentials that it wants."),
            "fingerprint": text("SHA-256 of its public key, in hex; empty when it brought none."),
            "address": text("Where the request came from."),
            "created": text("When it came."),
            "confirm": flag("Has whoever approves to send the code that the device shows?"),
        },
        example=PENDING,
    ),
    "PendingDevices": record(
        "Devices that wait, the oldest first.",
        {"pending": many("PendingDevice", "The devices.")},
        example={"pending": [PENDING]},
    ),
    "Code": record(
        "What the device shows.",
        {"code": text("The code; not needed where the key asks for none.", maxLength=16)},
        optional=("code",),
        example={"code": "K7QX"},
    ),
    "Revocation": record(
        "Why a certificate is revoked.",
        {"reason": text("A few words; `revoked` when absent.", maxLength=200)},
        optional=("reason",),
        example={"reason": "device lost"},
    ),
    "Entry": record(
        "One entry of the audit log. Fields that do not apply are absent.",
        {
            "id": text("Where it stands in the log."),
            "time": text("When it happened (RFC 3339)."),
            "event": text("What happened.", enum=sorted(EVENTS)),
            "user": text("Whom it concerns."),
            "key": text("The registration key that it concerns."),
            "serial": text("The certificate that it concerns."),
            "address": text("Where the request came from."),
            "actor": text("Who did it: `token:NAME`, `device:NAME`, `key:NAME`, `tuser:LOGIN`."),
            "reason": text("Why, or what exactly."),
            "omitted": {"type": "integer", "description": "Refusals before this one that were too many to be recorded."},
        },
        optional=("user", "key", "serial", "address", "actor", "reason", "omitted"),
        example=ENTRY,
    ),
    "Entries": record(
        "A page of the audit log, the oldest first.",
        {"entries": many("Entry", "The entries."), "after": _AFTER},
        optional=("after",),
        example={"entries": [ENTRY]},
    ),
    "OriginalRegistration": {
        "type": "object",
        "description": "A registration in its original form. Field names are taken in any case, unknown ones ignored.",
        "properties": {
            "RegistrationKey": text("The registration key."),
            "DeviceType": text("What kind of device it is.", maxLength=200),
            "CSR": text("A certificate request in PEM; without it a key is made."),
        },
        "required": ["RegistrationKey"],
        "examples": [{"RegistrationKey": "PLEASE_CHANGE_ME_TOO", "DeviceType": "pump"}],
    },
    "OriginalRegistered": record(
        "What the device gets.",
        {
            "Name": text("Its user name."),
            "Password": text("Its password, shown this once."),
            "Broker": text("URL of the broker."),
            "Cert": text("Its certificate in PEM."),
            "Key": text("Its private key in PEM, which is not kept; empty when it sent a CSR."),
            "Ca": text("The CA that it checks the broker with, in PEM."),
        },
    ),
    "Registration": record(
        "What a device wants.",
        {
            "registration_key": text("The registration key: its name, a dot, its secret."),
            "hardware_id": text("What the device is by its maker; with it, one that comes again is known.", maxLength=128),
            "device_type": text("What kind of device it is.", maxLength=200),
            "way": text("Its credentials; `csr` with a CSR and `server-key` without when absent.",
                        enum=["csr", "server-key", "password"]),
            "csr": text("A certificate request in PEM, of which the public key is taken."),
            "password": flag("A password beside the certificate?"),
        },
        optional=("hardware_id", "device_type", "way", "csr", "password"),
        example={
            "registration_key": "PLEASE_CHANGE_ME_TOO", "hardware_id": "00:1b:44:11:3a:b7", "device_type": "pump",
            "way": "server-key",
        },
    ),
    "Registered": record(
        "What the device gets. Fields that do not apply are absent.",
        {
            "name": text("Its user name."),
            "broker": text("URL of the broker."),
            "ca": text("The CA that it checks the broker with, in PEM."),
            "password": text("Its password, shown this once."),
            "certificate": text("Its certificate in PEM."),
            "private_key": text("Its private key in PEM, which is not kept."),
            "serial": text("Serial number of the certificate."),
            "not_after": text("When the certificate ends."),
        },
        optional=("password", "certificate", "private_key", "serial", "not_after"),
    ),
    "Renewal": record(
        "A renewal.", {"csr": text("A CSR in PEM, of which the public key is taken; absent: a key is made.")}, optional=("csr",)
    ),
    "Renewed": record(
        "The new certificate. Fields that do not apply are absent.",
        {
            "name": text("The device's user name."),
            "certificate": text("The certificate in PEM, and what is between it and the CA."),
            "private_key": text("Its private key in PEM, which is not kept."),
            "ca": text("The CA that the device checks the broker with, in PEM."),
            "serial": text("Serial number of the certificate."),
            "not_after": text("When the certificate ends."),
            "replaces": text("Serial number of the one that it takes the place of."),
        },
        optional=("private_key", "replaces"),
    ),
    "Waiting": record(
        "Somebody has to approve of the device first: send the same request again after Retry-After.",
        {
            "status": text("How it stands.", enum=["waiting"]),
            "id": text("Of the request that waits; no secret."),
            "poll": text("Where to ask how it stands."),
            "code": text("What the device shows, for whoever approves of it."),
        },
        optional=("code",),
        example={"status": "waiting", "id": "0" * 32, "poll": "/v1/devices/pending/" + "0" * 32},
    ),
    "Approved": record(
        "The device was approved of: send the registration again.",
        {"status": text("How it stands.", enum=["approved"]), "id": text("Of the request.")},
        example={"status": "approved", "id": "0" * 32},
    ),
    "Self": record(
        "What is known of the device that asks.",
        {
            **{name: _DEVICE_FIELDS[name]
               for name in ("name", "device_type", "hardware_id", "key", "rights", "created", "changed")},
            "certificates": texts("Serial numbers of its certificates."),
            "logged_in_by": text("What it has shown.", enum=["certificate", "password"]),
        },
    ),
    "Health": record(
        "Whether the service can work.",
        {"status": text("`ok` or `degraded`."), "reasons": texts("What is wrong.")},
        optional=("reasons",),
        example={"status": "ok"},
    ),
}  # fmt: skip
"""By name; `openapi.py` puts them under `components`."""
