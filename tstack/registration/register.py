"""`POST /register.json`: a device shows the registration key and gets a name, a password and a certificate of its own.

The order is cheap first: the client's rate, the kind and the size of the body, its JSON, the key, and only then the work.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from aiohttp import web

from tstack.logs import clean
from tstack.pki.keys import CsrError, PublicKey, public_key_of_csr
from tstack.registration.body import ANY_NAME, json_object, read_body, text_field, word_field
from tstack.registration.errors import BadRequest, Later, Refusal
from tstack.registration.keyring import Keyring
from tstack.registration.limits import Limits
from tstack.registration.rates import Rates
from tstack.registration.refusals import Refusals
from tstack.registration.registrar import Registrar
from tstack.registration.wanted import MAX_DEVICE_TYPE, Waiting, Wanted

log = logging.getLogger("tstack.registration")


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """What a device sends."""

    registration_key: str = field(repr=False)
    device_type: str = ""
    csr: str = ""

    @classmethod
    def parse(cls, body: bytes) -> RegisterRequest:
        """The request in a JSON body. Field names are taken in any case, unknown fields ignored, null is absent.

        Raises `BadRequest`, which quotes nothing of the body: there is a key in it.
        """
        given = json_object(body, '{"RegistrationKey": "...", "DeviceType": "..."}')
        fields = {name.casefold(): value for name, value in given.items()}
        device_type = word_field(fields, "devicetype", MAX_DEVICE_TYPE, called="DeviceType")
        key = text_field(fields, "registrationkey", called="RegistrationKey")
        return cls(key, device_type, text_field(fields, "csr", called="CSR"))


class Register:
    """The HTTP side of it: who may ask, and how."""

    def __init__(
        self, registrar: Registrar, *, keyring: Keyring, rates: Rates, refusals: Refusals, limits: Limits
    ) -> None:
        self._registrar = registrar
        self._keyring = keyring
        self._rates = rates
        self._limits = limits
        self._refusals = refusals

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request; every refusal is raised."""
        client = self._rates.client(request)
        shown = ""
        try:
            self._rates.register(client)
            asked = RegisterRequest.parse(await read_body(request, self._limits, ANY_NAME))
            key = self._keyring.find(asked.registration_key, client=client)
            shown = key.name
            self._rates.key(key.name)
            public_key = csr_key(asked.csr) if asked.csr else None
            wanted = Wanted(
                "csr" if asked.csr else "server-key", public_key, asked.device_type, password=True,
                secret=asked.registration_key,
            )  # fmt: skip
            made = await self._registrar.register(wanted, key, client)
            if isinstance(made, Waiting):
                raise Later(  # its answer has no form for this, and clients that know 503 come again
                    "somebody has to approve of the device first",
                    "send the same request again, until it is granted",
                    made.retry_seconds,
                )
        except Refusal as refusal:
            await self._refusals.note(client, refusal, key=shown)
            raise
        log.info("registered %s, device type %r, for %s", made.name, clean(asked.device_type), clean(client))
        return web.json_response(made.to_json())


def csr_key(csr: str) -> PublicKey:
    """The public key of a request in PEM, the only thing that is taken of it. Raises `BadRequest`."""
    try:
        return public_key_of_csr(csr)
    except CsrError as error:
        raise BadRequest(f"CSR: {error}", "send a PEM request, or none at all to get a key made") from None
