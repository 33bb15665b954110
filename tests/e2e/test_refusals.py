"""Whatever is not one's own is out of reach, and what an administrator takes back is gone in under a second."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.stack import Device, Stack, Subscriber, publish
from tests.etcd import Certificates
from tests.processes import Running, need, run, wait_until

REFUSED = (4, 5)
"""mosquitto_pub's exit codes for a CONNECT that was refused: bad user name or password, not authorised."""

SOON = 1.0
"""Seconds in which a change has to reach live connections."""


@pytest.fixture
def device(stack: Stack) -> Device:
    """A device of its own for each test."""
    return stack.register()


def test_wrong_password(stack: Stack, device: Device) -> None:
    """Refused, and the next right one is let in."""
    wrong = [*device.by_password(stack.tls_port)[:-1], "not-the-password"]
    assert publish(wrong, f"{device.name}/x", "x")[0] in REFUSED
    assert publish(device.by_password(stack.tls_port), f"{device.name}/x", "x")[0] == 0


def test_unknown_user_and_no_user(stack: Stack) -> None:
    """Nobody is not somebody."""
    plain = ["-h", "127.0.0.1", "-p", str(stack.port)]
    assert publish([*plain, "-u", "ZZZ-999", "-P", "x"], "ZZZ-999/x", "x")[0] in REFUSED
    assert publish(plain, "x", "x")[0] in REFUSED


def test_a_stranger_s_certificate(stack: Stack, device: Device, tmp_path: Path) -> None:
    """The right name from the wrong authority ends in the TLS handshake."""
    certificate, key = Certificates(tmp_path / "stranger").issue(device.name)
    access = [
        "-h", "localhost", "-p", str(stack.tls_port), "--cafile", str(device.ca), "--cert", certificate, "--key", key,
    ]  # fmt: skip
    assert publish(access, f"{device.name}/x", "x")[0] != 0


def test_the_broker_is_checked_by_the_ca_of_the_registration(stack: Stack, device: Device, tmp_path: Path) -> None:
    """A client that trusts another CA does not talk to the broker."""
    other = Certificates(tmp_path / "other")
    access = ["-h", "localhost", "-p", str(stack.tls_port), "--cafile", other.ca_file, "-u", device.name, "-P", "x"]
    assert publish(access, f"{device.name}/x", "x")[0] not in (0, *REFUSED)


def test_a_revoked_certificate(stack: Stack, device: Device) -> None:
    """The live connection ends, a new one is refused; the password goes on working."""
    with Subscriber(device.by_certificate(stack.tls_port), f"{device.name}/#") as live:
        put_out(stack, device, "revoke", "certificate revoked")
        live.wait_for("(?i)not authorised")
    assert publish(device.by_certificate(stack.tls_port), f"{device.name}/x", "x")[0] in REFUSED
    assert publish(device.by_password(stack.tls_port), f"{device.name}/x", "x")[0] == 0


def test_publishing_to_another_user_s_topic(stack: Stack, device: Device) -> None:
    """Never acknowledged, never delivered; at QoS 0 not either."""
    other = stack.register()
    with Subscriber(stack.consumer(f"watch-{other.name}"), f"{other.name}/#") as watcher:
        code, _ = publish(device.by_certificate(stack.tls_port), f"{other.name}/x", "intruder")
        assert code != 0
        run(
            [need("mosquitto_pub"), *device.by_certificate(stack.tls_port), "-t", f"{other.name}/x", "-m", "intruder 0"]
        )
        assert publish(other.by_certificate(stack.tls_port), f"{other.name}/x", "its own") == (0, "")
        watcher.wait_for_messages(f"{other.name}/x its own")


@pytest.mark.parametrize(
    "wanted", ["#", "+/x", "{other}/#", "{other}/x", "$share/group/{other}/#", "$share/group/#", "$SYS/#"]
)
def test_subscribing_wider_than_the_right(stack: Stack, device: Device, wanted: str) -> None:
    """Denied: everything, one level of everybody, another user's, the same in a shared subscription, the broker's own."""
    other = stack.register()
    filter_ = wanted.format(other=other.name)
    done = run([need("mosquitto_sub"), *device.by_certificate(stack.tls_port), "-t", filter_, "-C", "1", "-W", "5"])
    assert "denied" in done.stderr or "failed" in done.stderr.lower()
    assert done.stdout == ""


def test_subscribing_within_the_right(stack: Stack, device: Device) -> None:
    """What is inside is granted: narrower filters, and a shared subscription of one's own topics."""
    for filter_ in (f"{device.name}/+/x", f"{device.name}", f"$share/group/{device.name}/#"):
        with Subscriber(device.by_certificate(stack.tls_port), filter_) as subscriber:
            assert "denied" not in subscriber.output


def test_a_right_that_is_narrower_than_the_filter(stack: Stack) -> None:
    """Rights `a/+`: `a/b` and `a/+` are granted, `a/#` is not."""
    access = stack.consumer("narrow", "narrow/a/+")
    for filter_, granted in (("narrow/a/b", True), ("narrow/a/+", True), ("narrow/a/#", False), ("narrow/#", False)):
        done = run([need("mosquitto_sub"), *access, "-t", filter_, "-E"])
        assert ("denied" not in done.stderr) == granted, filter_


def test_a_will_for_another_user(stack: Stack, device: Device) -> None:
    """Refused when it is set."""
    will = ["--will-topic", "somebody/else", "--will-payload", "boo"]
    assert publish([*device.by_certificate(stack.tls_port), *will], f"{device.name}/x", "x")[0] in REFUSED


def test_a_will_of_one_s_own(stack: Stack, device: Device) -> None:
    """Sent when the connection breaks."""
    with Subscriber(stack.consumer(f"wills-{device.name}"), f"{device.name}/#") as watcher:
        will = ("--will-topic", f"{device.name}/gone", "--will-payload", "bye", "--will-qos", "1")
        with Subscriber(device.by_certificate(stack.tls_port), f"{device.name}/in", flags=will) as dying:
            dying.kill()
        watcher.wait_for_messages(f"{device.name}/gone bye")


def test_retained_messages_stay_within_the_rights(stack: Stack, device: Device) -> None:
    """A retained message is for those who may read its topic; nobody gets one for merely connecting."""
    other = stack.register()
    assert publish(other.by_certificate(stack.tls_port), f"{other.name}/state", "on", "-r") == (0, "")
    with Subscriber(device.by_certificate(stack.tls_port), f"{device.name}/#") as own:
        assert publish(device.by_certificate(stack.tls_port), f"{device.name}/ping", "1") == (0, "")
        own.wait_for_messages(f"{device.name}/ping 1")
    with Subscriber(stack.consumer(f"states-{device.name}"), "+/state") as consumer:
        wait_until(lambda: f"{other.name}/state on" in consumer.messages, "the retained message has not come")


def test_another_user_with_the_same_client_identifier(stack: Stack, device: Device) -> None:
    """Neither the session nor the connection of the first one is touched."""
    other = stack.register()
    same = ("-i", "the-same-identifier")
    with (
        Subscriber(device.by_certificate(stack.tls_port), f"{device.name}/#", flags=same) as first,
        Subscriber(other.by_certificate(stack.tls_port), f"{other.name}/#", flags=same),
    ):
        assert publish(device.by_certificate(stack.tls_port), f"{device.name}/x", "still here") == (0, "")
        first.wait_for_messages(f"{device.name}/x still here")


@pytest.mark.parametrize(
    ("action", "reason"), [("disable", "user disabled"), ("delete", "user deleted"), ("kick", "kicked")]
)
def test_a_user_is_put_out(stack: Stack, device: Device, action: str, reason: str) -> None:
    """disable, delete and kick end live connections in under a second; only the kicked one may come back."""
    with Subscriber(device.by_password(stack.tls_port), f"{device.name}/#") as live:
        put_out(stack, device, action, reason)
        live.wait_for(r"(?i)refused" if action != "kick" else "Subscribed", count=1 if action != "kick" else 2)
    code, _ = publish(device.by_password(stack.tls_port), f"{device.name}/x", "x")
    assert (code == 0) == (action == "kick")


def test_enable_after_disable(stack: Stack, device: Device) -> None:
    """A disabled user is let in again when enabled."""
    stack.tuser("disable", device.name)
    assert publish(device.by_password(stack.tls_port), f"{device.name}/x", "x")[0] in REFUSED
    stack.tuser("enable", device.name)
    wait_until(lambda: publish(device.by_password(stack.tls_port), f"{device.name}/x", "x")[0] == 0, "still refused")


def test_a_new_password_ends_the_old_one(stack: Stack, device: Device) -> None:
    """The session that was opened with the old password ends; the certificate is not touched."""
    with (
        Subscriber(device.by_password(stack.tls_port), f"{device.name}/#") as by_password,
        Subscriber(device.by_certificate(stack.tls_port), f"{device.name}/#") as by_certificate,
    ):
        stack.tuser("passwd", device.name, "-password", "-", stdin="another-password-1\n")
        by_password.wait_for("(?i)refused")
        assert publish(device.by_certificate(stack.tls_port), f"{device.name}/x", "x") == (0, "")
        by_certificate.wait_for_messages(f"{device.name}/x x")


def test_changed_rights_reach_a_live_subscription(stack: Stack) -> None:
    """A right that is taken away ends the deliveries of a live connection, one that is given lets it publish."""
    access = stack.consumer("changing", "changing/a/#")
    writer = stack.consumer("changing-writer")
    with Subscriber(access, "changing/a/#") as live:
        assert publish(writer, "changing/a/1", "before") == (0, "")
        live.wait_for_messages("changing/a/1 before")
        stack.tuser("rights", "changing", "-rights=changing/b/#")
        wait_until(lambda: publish(access, "changing/b/x", "now allowed")[0] == 0, "the new right has not come")
        assert publish(writer, "changing/a/2", "after") == (0, "")
        assert publish(access, "changing/a/3", "not allowed any more")[0] != 0
        assert live.messages == ["changing/a/1 before"]
        assert live.process.poll() is None


def test_garbage_on_every_port(stack: Stack, device: Device) -> None:
    """HTTP, TLS and noise where they do not belong: closed, and the broker goes on."""
    for port in (stack.port, stack.tls_port):
        for args in (["http://"], ["-k", "https://"]):
            done = run([need("curl"), "-sS", "-m", "5", *args[:-1], f"{args[-1]}127.0.0.1:{port}/"])
            assert done.returncode != 0
    with Running([need("openssl"), "s_client", "-connect", f"127.0.0.1:{stack.port}"]) as client:
        assert client.wait() != 0
    assert publish(device.by_certificate(stack.tls_port), f"{device.name}/x", "x") == (0, "")


def put_out(stack: Stack, device: Device, action: str, reason: str) -> None:
    """Have tuser do it, and see the connection end by the broker's log, in under a second after tuser has ended."""
    stack.tuser(action, device.name)
    started = time.monotonic()
    stack.broker.wait_for(rf"{device.name} \(client .*\) is gone: {reason}")
    assert time.monotonic() - started < SOON
