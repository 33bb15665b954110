"""The index of issued certificates."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tstack.identity.issued import IssuedCertificate, certificate_key, get_certificate, list_certificates, time_text
from tstack.store.embedded import EmbeddedStore

ENDS = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_record_reads_as_it_was_written() -> None:
    one = IssuedCertificate("1a", "ABC-234", not_after=time_text(ENDS), way="csr", key="plant-a", replaces="19")
    assert json.loads(one.to_json()) == {
        "User": "ABC-234", "Serial": "1a", "NotAfter": "2027-01-02T03:04:05Z", "Way": "csr", "Key": "plant-a",
        "Replaces": "19",
    }  # fmt: skip
    assert IssuedCertificate.from_json("1a", one.to_json()) == one
    assert one.ends == ENDS


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"User": 7, "NotAfter": []}', b"[" * 100_000])
def test_what_cannot_be_read_is_empty(data: bytes) -> None:
    assert IssuedCertificate.from_json("1a", data) == IssuedCertificate("1a")
    assert IssuedCertificate("1a", not_after="next year").ends is None


async def test_they_are_found_one_by_one_and_all_together(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "store.db") as store:
        records = [
            IssuedCertificate(f"{number:04x}".lstrip("0"), f"U{number}") for number in range(0x1000, 0x1000 + 1500)
        ]
        for start in range(0, len(records), 100):
            await store.commit(*(one.put() for one in records[start : start + 100]))
        assert [one async for one in list_certificates(store)] == records
        assert await get_certificate(store, "10:01") == records[1]
        assert await get_certificate(store, "ffff") is None
        with pytest.raises(ValueError, match="serial"):
            certificate_key("../user/x")
