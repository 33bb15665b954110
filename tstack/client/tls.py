"""The TLS side of a client: which CA it believes, which certificate it shows."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from tstack.client.errors import TurnedAway, Unreachable
from tstack.errors import Failure


def client_context(
    *, ca_file: str = "", cert_file: str = "", key_file: str = "", verify: bool = True
) -> ssl.SSLContext:
    """A context for connections to a broker: TLS 1.2 or newer, certificate and host name checked unless told otherwise.

    A blank `ca_file` stands for the system's CAs. Raises `Failure` for a file that is missing or not what it should be.
    """
    if bool(cert_file) != bool(key_file):
        raise Failure("a client certificate needs its private key and the other way round", "give both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file:
        _readable(ca_file, "the CA certificate")
        try:
            context.load_verify_locations(cafile=ca_file)
        except ssl.SSLError:
            raise Failure(
                f"{ca_file} holds no CA certificate", "it is a PEM file, -----BEGIN CERTIFICATE-----"
            ) from None
    else:
        context.load_default_certs()
    if cert_file:
        _load_identity(context, cert_file, key_file)
    return context


def _load_identity(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    _readable(cert_file, "the client certificate")
    _readable(key_file, "the client's private key")
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Failure(f"{key_file} is not the key of {cert_file}", "give the two files of one identity") from None
        raise Failure(f"{cert_file} or {key_file} is not a PEM certificate and its key", f"OpenSSL: {error}") from None


def _no_password() -> str:
    """Without this OpenSSL would ask at the terminal, in the middle of a service."""
    raise Failure(
        "the client's private key is encrypted", "give an unencrypted key that only its owner can read (0600)"
    )


def _readable(path: str, what: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise Failure(f"cannot read {what} {path}: {error.strerror}", "check the path and its permissions") from None


def explain(error: OSError, where: str) -> Failure:
    """A connection that failed, in words. Distrust is `TurnedAway`; everything that may pass is `Unreachable`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TurnedAway(
            f"the certificate of {where} is not to be trusted: {error.verify_message}",
            "check -cacrtfile, the host name in the URL and the broker's certificate",
        )
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            return TurnedAway(
                f"{where} refused the TLS connection: {reason}", "it may ask for another client certificate"
            )
        return Unreachable(
            f"no TLS connection to {where}: {reason}", "is it a TLS port? mqtts:// is TLS, mqtt:// is not"
        )
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return Unreachable(f"cannot reach {where}: {why}", "check the URL, and that the broker runs")
