"""The parts of the client that need no broker: URLs, waiting times, the inbox."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tstack.client import Backoff, BrokerAddress, Message, default_client_id
from tstack.client.message import Inbox
from tstack.errors import Failure


@pytest.mark.parametrize(("url", "address"), [
    ("tcp://localhost", BrokerAddress("localhost", 1883)),
    ("tcp://localhost:1884/", BrokerAddress("localhost", 1884)),
    ("mqtt://10.0.0.1:1", BrokerAddress("10.0.0.1", 1)),
    ("http://broker", BrokerAddress("broker", 1883)),
    ("ssl://broker", BrokerAddress("broker", 8883, tls=True)),
    ("MQTTS://Broker:8884", BrokerAddress("broker", 8884, tls=True)),
    ("tls://[::1]:8883", BrokerAddress("::1", 8883, tls=True)),
    ("https://broker", BrokerAddress("broker", 8883, tls=True)),
    ("ws://broker/mqtt", BrokerAddress("broker", 80, websocket=True, path="/mqtt")),
    ("wss://broker:9001", BrokerAddress("broker", 9001, tls=True, websocket=True)),
])  # fmt: skip
def test_a_broker_url(url: str, address: BrokerAddress) -> None:
    assert BrokerAddress.parse(url) == address
    assert BrokerAddress.parse(str(address)) == address


@pytest.mark.parametrize(("url", "words"), [
    ("", "Unknown broker URL type"), ("broker", "Unknown broker URL type"), ("localhost:1883", "Unknown broker URL type"),
    ("foo://broker", "Unknown broker URL type"), ("tcp://", "names no host"), ("tcp://:1883", "names no host"),
    ("tcp://broker:99999", "makes no sense"), ("tcp://broker:x", "makes no sense"), ("tcp://[::1", "makes no sense"),
    ("tcp://broker/path", "goes on after the port"), ("tcp://broker?q", "goes on after the port"),
])  # fmt: skip
def test_what_is_no_broker_url(url: str, words: str) -> None:
    with pytest.raises(Failure, match=words):
        BrokerAddress.parse(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(Failure) as caught:
        BrokerAddress.parse("mqtt://user:s3cret@broker")
    assert "s3cret" not in caught.value.message + caught.value.hint


def test_the_default_client_identifier_names_user_host_and_process_and_differs_for_each_client() -> None:
    first, second = default_client_id("ABC-123"), default_client_id("ABC-123")
    assert first.startswith(f"ABC-123-{socket.gethostname()}-{os.getpid()}")
    assert first != second


def test_waiting_times_double_up_to_the_ceiling_and_are_spread() -> None:
    delays = [[backoff.next() for _ in range(10)] for backoff in (Backoff(), Backoff())]
    assert delays[0] != delays[1]
    for number, delay in enumerate(delays[0]):
        whole = min(60.0, 2.0**number)
        assert whole / 2 <= delay <= whole
    backoff = Backoff()
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 1.0


class Acknowledged:
    def __init__(self) -> None:
        self.packet_ids: list[int] = []

    def __call__(self, packet_id: int, qos: int) -> None:
        self.packet_ids.append(packet_id)


def message(text: str) -> Message:
    return Message("a", text.encode(), qos=1)


def drain(inbox: Inbox) -> list[Message]:
    return list(iter(inbox.take, None))  # type: ignore[arg-type]


@given(order=st.permutations(range(1, 9)))
def test_acknowledgements_leave_in_the_order_of_receipt_whatever_the_order_they_are_made_in(order: list[int]) -> None:
    sent = Acknowledged()
    inbox = Inbox(sent, 100, 1000)
    messages = {packet_id: message(str(packet_id)) for packet_id in range(1, 9)}
    for packet_id, one in messages.items():
        inbox.put(one, packet_id, dup=False)
    for packet_id in order:
        messages[packet_id].ack()
        messages[packet_id].ack()
        assert sent.packet_ids == sorted(sent.packet_ids)
    assert sent.packet_ids == list(range(1, 9))
    assert inbox.held == 0


async def test_a_packet_identifier_that_is_used_again_for_another_message_is_another_message() -> None:
    sent = Acknowledged()
    inbox = Inbox(sent, 100, 1000)
    inbox.put(message("old"), 1, dup=False)
    inbox.link_down()
    inbox.link_up(session_present=True)
    inbox.put(message("new"), 1, dup=False)
    inbox.put(message("newer"), 2, dup=True)
    assert [one.payload for one in drain(inbox)] == [b"old", b"new", b"newer"]


async def test_without_the_old_session_a_repeated_message_is_a_new_one() -> None:
    sent = Acknowledged()
    inbox = Inbox(sent, 100, 1000)
    inbox.put(message("x"), 1, dup=False)
    inbox.link_down()
    inbox.link_up(session_present=False)
    inbox.put(message("x"), 1, dup=True)
    first, second = drain(inbox)
    first.ack()
    assert sent.packet_ids == []
    second.ack()
    assert sent.packet_ids == [1]
    assert inbox.held == 0


async def test_the_inbox_is_full_by_number_and_by_size_and_has_room_again_after_an_acknowledgement() -> None:
    for inbox in (Inbox(Acknowledged(), 2, 1000), Inbox(Acknowledged(), 100, 8)):
        inbox.put(message("one"), 1, dup=False)
        assert not inbox.full
        inbox.put(message("two"), 2, dup=False)
        assert inbox.full
        first, _ = drain(inbox)
        assert inbox.full
        first.ack()
        assert not inbox.full


async def test_a_qos_0_message_makes_room_when_it_is_taken() -> None:
    inbox = Inbox(Acknowledged(), 1, 1000)
    inbox.put(Message("a", b"x"), None, dup=False)
    assert inbox.full
    drain(inbox)
    assert not inbox.full
