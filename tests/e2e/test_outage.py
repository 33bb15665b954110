"""etcd goes away and comes back: what is known goes on, what cannot be asked is refused as such, all catch up."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.stack import KEY, Stack, Subscriber, publish
from tests.processes import Running, command, need, run, wait_until


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack on an etcd that the test may kill."""
    with Stack(tmp_path_factory.mktemp("outage"), "etcd") as running:
        yield running


def register(stack: Stack) -> tuple[int, str]:
    """Ask for a registration; the HTTP status and the headers."""
    body = json.dumps({"RegistrationKey": KEY, "DeviceType": "Test"})
    done = run([need("curl"), "-sS", "-D", "-", "-o", "/dev/null", "-d", "@-", stack.url], stdin=body)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1]), done.stdout.lower()


def test_etcd_is_killed_while_devices_are_connected(stack: Stack) -> None:
    """Connected devices stay, known users log in, registration says 503, /readyz says degraded; then all is well again."""
    assert stack.etcd is not None
    device = stack.register()
    access = stack.consumer()
    with Subscriber(access, "#") as consumer:
        assert stack.readiness()["status"] == "ready"
        stack.etcd.kill()
        wait_until(lambda: stack.readiness()["status"] == "degraded", "the broker has not noticed")
        assert publish(device.by_certificate(stack.tls_port), f"{device.name}/x", "by certificate") == (0, "")
        assert publish(device.by_password(stack.tls_port), f"{device.name}/x", "by password") == (0, "")
        consumer.wait_for_messages(f"{device.name}/x by certificate", f"{device.name}/x by password")
        status, headers = register(stack)
        assert status == 503
        assert "retry-after:" in headers
        failed = run([*command("tuser"), "disable", device.name, *stack.where])
        assert failed.returncode == 1
        assert "Traceback" not in failed.stderr

        stack.etcd.restart()
        wait_until(lambda: stack.readiness()["status"] == "ready", "the broker has not caught up")
        wait_until(lambda: register(stack)[0] == 200, "registration has not caught up")
        stack.tuser("disable", device.name)
        wait_until(lambda: publish(device.by_password(stack.tls_port), "x", "x")[0] == 4, "the change has not come")
        assert consumer.process.poll() is None


def test_a_change_made_while_the_broker_cannot_see_it(stack: Stack) -> None:
    """etcd stops in its tracks, comes back, and a deletion made right then ends the connection."""
    assert stack.etcd is not None
    device = stack.register()
    with Subscriber(device.by_certificate(stack.tls_port), f"{device.name}/#") as live:
        stack.etcd.restart()
        stack.tuser("delete", device.name)
        live.wait_for("connection was lost|not authorised|refused")


def test_a_broker_starts_when_the_store_does(stack: Stack) -> None:
    """A store that is down at start is waited for, with a line that says so; one that stays down is an error."""
    assert stack.etcd is not None
    stack.etcd.kill()
    flags = ["-addr=127.0.0.1:0", "-addrTls=", "-addrAdmin=", f"-etcdhosts={stack.etcd.endpoint}"]
    flags.append(f"-data-dir={stack.folder / 'second'}")
    done = run([*command("tserve"), *flags, "-store-wait=1s"])
    assert done.returncode == 1
    assert "waiting up to 1 s for the store" in done.stderr
    assert "Traceback" not in done.stderr
    with Running([*command("tserve"), *flags]) as broker:
        broker.wait_for("waiting up to")
        stack.etcd.restart()
        broker.wait_for(r"listening on mqtt://")
