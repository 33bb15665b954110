"""Wrong secrets make the next try wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.registration.conftest import KEY, Start
from tstack.identity.audit import entries
from tstack.registration.limits import Limits
from tstack.registration.lockout import Lockout


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lockout(**limits: float) -> tuple[Lockout, Clock]:
    clock = Clock()
    return Lockout(Limits(**limits), clock), clock  # type: ignore[arg-type]


def test_the_third_failure_waits_and_each_further_one_twice_as_long() -> None:
    one, clock = lockout()
    waits = []
    for _ in range(10):
        assert one.wait("192.0.2.1", "ci") == 0.0
        one.failed("192.0.2.1", "ci", "the same old secret")
        waits.append(one.wait("192.0.2.1", "ci"))
        clock.now += waits[-1]
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_neighbour_with_another_name_does_not_wait_for_somebodys_old_secret() -> None:
    one, clock = lockout()
    for _ in range(200):
        one.failed("192.0.2.1", "old", "the same old secret")
        clock.now += 1
    assert one.wait("192.0.2.1", "old") > 0
    assert one.wait("192.0.2.1", "ci") == 0.0
    assert one.wait("192.0.2.2", "old") == 0.0


def test_guessing_locks_the_address_for_everything() -> None:
    one, clock = lockout()
    for number in range(10):
        one.failed("192.0.2.1", f"name{number}", f"guess {number}")
    assert one.wait("192.0.2.1", "ci") == 30.0
    assert one.wait("192.0.2.1", "") == 30.0
    assert one.wait("192.0.2.2", "ci") == 0.0
    clock.now += 30
    for number in range(10):
        one.failed("192.0.2.1", f"name{number}", f"other guess {number}")
    assert one.wait("192.0.2.1", "ci") == 60.0


def test_an_ipv6_network_is_one_address() -> None:
    one, _ = lockout()
    for number in range(10):
        one.failed(f"2001:db8::{number:x}", "", f"guess {number}")
    assert one.wait("2001:db8::ffff", "ci") == 30.0
    assert one.wait("2001:db8:0:1::1", "ci") == 0.0


def test_guessing_at_a_name_from_everywhere_does_not_keep_its_owner_out() -> None:
    one, _ = lockout()
    one.passed("192.0.2.1", "ci")
    for number in range(50):
        one.failed(f"198.51.100.{number}", "ci", f"guess {number}")
    assert one.wait("203.0.113.1", "ci") == 30.0
    assert one.wait("192.0.2.1", "ci") == 0.0
    one.failed("192.0.2.1", "ci", "wrong now")
    assert one.wait("192.0.2.1", "ci") > 0.0


def test_the_right_secret_ends_the_back_off() -> None:
    one, _ = lockout()
    for _ in range(5):
        one.failed("192.0.2.1", "ci", "x")
    one.passed("192.0.2.1", "ci")
    assert one.wait("192.0.2.1", "ci") == 0.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.booleans()), min_size=100, max_size=400))
def test_it_never_grows(tries: list[tuple[int, int, bool]]) -> None:
    one, clock = lockout(lockout_entries=20, lockout_address=1, lockout_name=1)
    for address, name, right in tries:
        where = f"10.0.{address // 256}.{address % 256}"
        if right:
            one.passed(where, f"n{name}")
        else:
            one.failed(where, f"n{name}", f"{address} {name}")
        clock.now += 0.1
        assert len(one) <= 20


WAYS_TO_REGISTER = [
    ("/register.json", lambda secret: {"RegistrationKey": secret}),
    ("/v1/devices", lambda secret: {"registration_key": secret, "way": "password"}),
]


@pytest.mark.parametrize(("path", "body"), WAYS_TO_REGISTER)
async def test_wrong_registration_keys_lock_out_and_stand_in_the_audit_log(
    start: Start, path: str, body: Callable[[str], dict[str, str]]
) -> None:
    clock = Clock()
    desk = await start(clock=clock)
    for number in range(10):
        assert (await desk.ask("POST", path, json=body(f"name{number}.guess"))).status == 401
    answer = await desk.ask("POST", path, json=body(KEY))
    assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
    clock.now += 30
    assert (await desk.ask("POST", path, json=body(KEY))).status in (200, 201)
    found = [entry async for entry in entries(desk.store) if entry.event == "device.refused"]
    assert len(found) == 10
    assert {(entry.address, entry.reason) for entry in found} == {("127.0.0.1", "401 the registration key is wrong")}


async def test_a_device_with_an_old_key_waits_and_its_neighbours_do_not(start: Start) -> None:
    clock = Clock()
    desk = await start(clock=clock)
    for _ in range(30):
        await desk.ask("POST", "/v1/devices", json={"registration_key": "old.secret"})
    assert (await desk.ask("POST", "/v1/devices", json={"registration_key": "old.secret"})).status == 429
    assert (await desk.register()).status == 200
