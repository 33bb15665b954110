"""What the OpenAPI document says of renewal, EST and the revocation list."""

from __future__ import annotations

from tstack.registration.est import CERTIFICATES, PKCS10, ROOT
from tstack.registration.openapi_parts import Json, answer, body, content, operation, problems

REFUSED = (400, 401, 403, 408, 413, 415, 429, 503)

_BASE64 = {"type": "string", "contentEncoding": "base64"}
_WAIT = {"202": {"description": "Somebody has to approve first: send the same request again after `Retry-After`."}}


def certificates() -> Json:
    """The paths."""
    return {
        "/v1/devices/renew": {"post": operation(
            "renewDevice", "registration", "Renew the certificate of the device that asks",
            "By client certificate, or by name and password. The old certificate is good until the new one is used for the "
            "first time, or until it ends. Without a CSR a key is made and sent, once.",
            {"200": answer("The new certificate.", "Renewed"), **problems(*REFUSED)}, login="device",
            request=body("Renewal", {}),
        )},
        "/ca.crl": {"get": operation(
            "getCrl", "service", "The certificates that are no longer good", "Signed by the issuing authority.",
            {"200": {
                "description": "PEM, or DER for who asks for it with `Accept`.",
                "content": {
                    "application/x-pem-file": {"schema": {"type": "string"}},
                    "application/pkix-crl": {"schema": {"type": "string"}},
                },
            }},
        )},
        f"{ROOT}/cacerts": {"get": _asked(
            "estCaCerts", "The CA and what is between it and devices (RFC 7030 4.1)", CERTIFICATES
        )},
        f"{ROOT}/csrattrs": {"get": _asked(
            "estCsrAttrs", "What a CSR should be like (RFC 7030 4.5)", "application/csrattrs"
        )},
        f"{ROOT}/simpleenroll": {"post": _sent(
            "estSimpleEnroll", "Register a device by EST (RFC 7030 4.2)", "registration_key", CERTIFICATES, _WAIT
        )},
        f"{ROOT}/serverkeygen": {"post": _sent(
            "estServerKeygen", "Register a device by EST, with a key that is made here (RFC 7030 4.4)", "registration_key",
            "multipart/mixed", _WAIT,
        )},
        f"{ROOT}/simplereenroll": {"post": _sent(
            "estSimpleReenroll", "Renew the certificate of the device that asks, by EST (RFC 7030 4.2.2)", "device",
            CERTIFICATES, {},
        )},
    }  # fmt: skip


def _asked(name: str, summary: str, media_type: str) -> Json:
    return operation(name, "registration", summary, "", {"200": answer("Base64.", _BASE64, media_type=media_type)})


def _sent(name: str, summary: str, login: str, media_type: str, more: Json) -> Json:
    request = {"required": True, "description": "A PKCS #10 request.", **content(_BASE64, media_type=PKCS10)}
    granted = {"200": answer("The certificate.", _BASE64, media_type=media_type), **more}
    conflict = () if login == "device" else (409,)
    return operation(
        name, "registration", summary, "Of the request only the public key is taken.",
        {**granted, **problems(*REFUSED, *conflict)}, login=login, request=request,
    )  # fmt: skip
