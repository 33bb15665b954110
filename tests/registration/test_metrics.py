"""The registration service's figures."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from tests.processes import ROOT
from tests.registration.admin import Administrator, until
from tests.registration.conftest import Desk
from tstack.identity.admin import create_user
from tstack.identity.issued import IssuedCertificate, time_text
from tstack.identity.users import User


async def figures(admin: Administrator) -> dict[tuple[str, str], float]:
    answer = await admin("GET", "/metrics")
    assert answer.status == 200, answer.text
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_the_figures_are_what_happened(desk: Desk) -> None:
    admin = await Administrator.of(desk)
    await create_user(desk.store, User("operator", rights=("#",)))
    for name, days, more in (("A", -1, {}), ("B", 5, {"disabled": True}), ("C", 20, {}), ("D", 300, {})):
        await admin.device(name, certificates=(f"{ord(name):x}",), **more)
        end = time_text(datetime.now(UTC) + timedelta(days=days))
        await desk.store.commit(IssuedCertificate(f"{ord(name):x}", name, not_after=end).put())
    await until(lambda: len(desk.registration._admin._fleet.ends) == 4)
    for number in range(11):
        await desk.register(RegistrationKey=f"name{number}.guess")
    found = await figures(admin)
    assert (found["treg_devices", "enabled"], found["treg_devices", "disabled"]) == (3, 1)
    assert [found["treg_device_certificates_ending", within] for within in ("ended", "7d", "30d")] == [1, 2, 3]
    assert (found["treg_answers_total", "401"], found["treg_answers_total", "429"]) == (10, 1)
    assert (found["treg_lockouts_total", "key"], found["treg_lockouts_total", "token"]) == (1, 0)
    assert (found["treg_limited_total", "lockout"], found["treg_limited_total", "connections"]) == (1, 0)
    assert found["treg_connections", ""] == 1
    assert found["treg_store_connected", ""] == 1
    page = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"`(treg_\w+)", page))
    assert documented == {name for name, _ in found}
    await desk.store.close()
    await until(lambda: desk.registration._directory.stale_since is not None)
    assert (await figures(admin))["treg_store_connected", ""] == 0
