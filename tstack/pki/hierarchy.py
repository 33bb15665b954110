"""A root whose key lies elsewhere, and an issuing CA that does the work: making the two, and making them last.

The root is `ca.crt` and `ca.key` of a certs folder, the issuing CA `issuing.crt` and `issuing.key` of the same folder or of
another one. Clients trust the root. So the issuing CA can be made anew, and the machine that it works on be lost, without a
visit to any device; the root key is needed for these two things alone.
"""

from __future__ import annotations

from datetime import timedelta

from tstack.errors import Failure
from tstack.pki.authority import CA_VALIDITY, ISSUING_VALIDITY, Authority, Pair
from tstack.pki.certificates import load_certificates
from tstack.pki.files import CertsFolder
from tstack.pki.keys import generate_key, key_pem, load_key


def make_root(folder: CertsFolder, *, kind: str = "p256", validity: timedelta = CA_VALIDITY, name: str = "") -> None:
    """A new CA in a folder that has none. Raises `Failure`, and `ValueError` as `Authority.create` does."""
    folder.add(folder.ca_crt, folder.ca_key, lambda: Authority.create(kind=kind, validity=validity, name=name))


def load_root(folder: CertsFolder) -> Authority:
    """The root with its key. Raises `Failure` when the key is not there."""
    try:
        return Authority.load(folder.ca_crt, folder.ca_key)
    except Failure as failure:
        raise Failure(failure.message, f"the root's key is needed for this; {failure.hint}") from None


def make_issuing(
    folder: CertsFolder,
    root: CertsFolder,
    *,
    kind: str = "p256",
    validity: timedelta = ISSUING_VALIDITY,
    name: str = "",
) -> None:
    """A new issuing CA in `folder`, which gets the certificate of the one in `root` that signs it, too.

    Raises as `make_root`.
    """
    authority = load_root(root)
    if folder.ca_crt.exists() and load_certificates(folder.ca_crt)[0] != authority.certificate:
        raise Failure(
            f"{folder.ca_crt}: is another CA than {root.ca_crt}",
            "clients that trust the one will not trust the other: name another folder with -certs-dir",
        )

    def make() -> Pair:
        key = generate_key(kind)
        return Pair(authority.issue_authority(key.public_key(), validity, name=name), key_pem(key))

    folder.add(folder.issuing_crt, folder.issuing_key, make)
    if not folder.ca_crt.exists():
        folder.replace(folder.ca_crt, authority.ca_pem)


def renew_root(folder: CertsFolder, validity: timedelta = CA_VALIDITY) -> None:
    """A new certificate for the root, with the same name and key: devices that hold the old one need not know.

    The chain of an issuing CA in the same folder is renewed with it. Raises `Failure`.
    """
    folder.replace(folder.ca_crt, load_root(folder).reissue(validity))
    if folder.issuing_crt.exists():
        renew_issuing(folder, folder)


def renew_issuing(folder: CertsFolder, root: CertsFolder, validity: timedelta = ISSUING_VALIDITY) -> None:
    """A new certificate for the issuing CA in `folder`, with the same name and key. Raises `Failure`."""
    old = load_certificates(folder.issuing_crt)[0]
    key = load_key(folder.issuing_key)
    chain = load_root(root).issue_authority(key.public_key(), validity, subject=old.subject)
    folder.replace(folder.issuing_crt, chain)
