"""The client: keeps one connection to the broker alive and hides from the program that it breaks.

One task lives as long as the client: connect, subscribe, send again what was not confirmed, serve until the connection ends,
wait (`backoff`), from the start. On each connection three tasks run: one reads, one writes, one watches that the broker is
alive. The program never touches the connection: it puts into the outbox and takes from the inbox.

A connection that fails is tried again for ever. A broker that turns us away (wrong password, a certificate that is not to be
trusted, a subscription beyond the rights) is tried `max_refusals` times; then everything raises that `TurnedAway`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket

from tstack.client import five, tls
from tstack.client.address import BrokerAddress, default_client_id
from tstack.client.backoff import Backoff
from tstack.client.errors import Closed, NotConfirmed, TurnedAway, Unreachable
from tstack.client.link import CLOSE_TIMEOUT, Link, OldBroker, Options, Parted, Silent, Unanswered
from tstack.client.message import INBOX_BYTES, INBOX_MESSAGES, Inbox, Message
from tstack.client.outbox import OUTBOX_BYTES, OUTBOX_MESSAGES, Entry, Outbox
from tstack.client.subscriptions import Subscription, Subscriptions
from tstack.errors import Failure
from tstack.logs import clean
from tstack.mqtt.properties import Properties
from tstack.mqtt.topics import check_filter, check_topic

log = logging.getLogger("tstack.client")

STABLE_AFTER = 10.0
"""Seconds that a connection must last before the back-off and the count of refusals start again."""

TIMEOUT = 30.0
"""Seconds that a publish or a subscription may take when the program does not say."""

WRITE_PACKETS = 64
"""Packets in one write at most."""

UNANSWERED = 2
"""Connections that a broker closes instead of answering a CONNECT of MQTT 5.0 until it is spoken to in 3.1.1."""

OLD = 3600.0
"""Seconds that it is spoken to in 3.1.1 for; the connection after that is of 5.0 again, which it may have learnt."""


class _Closing(Exception):
    """Ends the tasks of a connection when the program closes the client."""


class Client:
    """An MQTT client for one program, of 3.1.1 or, where options and broker have it, of 5.0.

    `async with Client(Options(url)) as client:` starts and closes it.
    """

    def __init__(
        self, options: Options, *, max_refusals: int | None = None, backoff: Backoff | None = None,
        inbox_messages: int = INBOX_MESSAGES, inbox_bytes: int = INBOX_BYTES,
        outbox_messages: int = OUTBOX_MESSAGES, outbox_bytes: int = OUTBOX_BYTES,
    ) -> None:  # fmt: skip
        """Raises `Failure` for a URL, a certificate or a key that cannot be used. `max_refusals` None: never give up."""
        self.address = BrokerAddress.parse(options.url)
        self.client_id = options.client_id or default_client_id(options.username)
        self._options = options
        self._old_until = 0.0
        self._unanswered = 0
        self._context = self._load_tls() if self.address.tls else None
        self._max_refusals = max_refusals
        self._backoff = backoff or Backoff()
        self._inbox = Inbox(self._acknowledge, inbox_messages, inbox_bytes)
        self._outbox = Outbox(outbox_messages, outbox_bytes)
        self._subscriptions = Subscriptions()
        self._replies: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._up_since = 0.0
        self._closing = False
        self._failure: Failure | None = None
        self._last: Failure | None = None
        self._blamed: Entry | None = None
        self._last_id = 0
        self._last_ns = 0
        self._task: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._live(), name=f"MQTT client {self.client_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send the acknowledgements that are due, DISCONNECT, and fail everything that still waits with `Closed`."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            if not self._up.is_set():
                self._task.cancel()
            _, late = await asyncio.wait([self._task], timeout=2 * CLOSE_TIMEOUT)
            if late:
                self._task.cancel()
                await asyncio.wait([self._task])
        self._fail(Closed("the MQTT client is closed"))

    @property
    def connected(self) -> bool:
        """Is there a connection that the broker has accepted?"""
        return self._up.is_set() and self._failure is None

    async def wait_connected(self, timeout: float | None = TIMEOUT) -> None:
        """Wait until the broker has accepted us. Raises `TurnedAway`, or `Unreachable` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self._up.is_set():
                    self._check()
                    await self._up.wait()
        except TimeoutError:
            raise self._last or Unreachable(f"{self.address} did not answer within {timeout:g} s") from None
        self._check()

    # -- what a program does ------------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, payload: bytes, qos: int = 1, retain: bool = False, timeout: float | None = TIMEOUT,
        properties: Properties | None = None,
    ) -> None:  # fmt: skip
        """Publish; returns when the broker has confirmed it (QoS 1, 2) or it is written to the connection (QoS 0). `properties`
        reach a broker of MQTT 5.0 alone.

        Without a connection it waits in the outbox. Raises `NotConfirmed` after `timeout` seconds, `Failure` for a topic that
        cannot be published to.
        """
        try:
            check_topic(topic)
        except ValueError as error:
            raise Failure(f"cannot publish: {error}") from None
        self._check()
        entry = Entry(topic, payload, qos, retain, asyncio.get_running_loop().create_future(), properties)
        try:
            async with asyncio.timeout(timeout):
                await self._outbox.add(entry)
                self._check()
                self._wake.set()
                await entry.done
        except TimeoutError:
            raise self._unconfirmed(entry, timeout) from None
        finally:
            entry.done.cancel()
            self._outbox.forget(entry)

    async def subscribe(self, filter_: str, qos: int = 1, timeout: float | None = TIMEOUT) -> int:
        """Subscribe, now and after each reconnect. Returns the QoS that the broker granted.

        Raises `SubscriptionRefused`, `Unreachable` after `timeout` seconds (None: never), `Failure` for a bad filter.
        """
        try:
            check_filter(filter_)
        except ValueError as error:
            raise Failure(f"cannot subscribe: {error}") from None
        self._check()
        subscription = Subscription(filter_, qos, asyncio.get_running_loop().create_future())
        self._subscriptions.add(subscription)
        self._wake.set()
        try:
            async with asyncio.timeout(timeout):
                return await subscription.granted
        except TimeoutError:
            raise self._last or Unreachable(f"{self.address} did not answer within {timeout:g} s") from None
        finally:
            if not subscription.granted.done() or subscription.granted.cancelled():
                self._subscriptions.remove(subscription)

    async def receive(self) -> Message:
        """The next message. Raises `Closed`, or the `TurnedAway` that the client has ended with."""
        while True:
            message = self._inbox.take()
            if message is not None:
                return message
            self._check()
            await self._inbox.wait()

    async def batch(self, max_messages: int, max_bytes: int, linger: float = 0.0) -> list[Message]:
        """The next message and what follows it within `linger` seconds, up to the bounds."""
        batch = [await self.receive()]
        size = batch[0].size
        deadline = asyncio.get_running_loop().time() + linger
        while len(batch) < max_messages and size < max_bytes:
            message = self._inbox.take()
            if message is not None:
                batch.append(message)
                size += message.size
            elif self._failure is not None or not await self._news_before(deadline):
                break
        return batch

    async def messages(self) -> AsyncIterator[Message]:
        """Every message, until the client is closed."""
        while True:
            try:
                message = await self.receive()
            except Closed:
                return
            yield message

    async def _news_before(self, deadline: float) -> bool:
        if deadline <= asyncio.get_running_loop().time():
            return False
        try:
            async with asyncio.timeout_at(deadline):
                await self._inbox.wait()
        except TimeoutError:
            return False
        return True

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        refusals = 0
        while True:
            self._up_since = 0.0
            try:
                await self._connection()
            except _Closing:
                return
            except TurnedAway as failure:
                refusals += 1
                self._last = failure
                if self._max_refusals is not None and refusals >= self._max_refusals:
                    self._fail(failure)
                    return
            except Unreachable as failure:
                self._last = failure
            except Exception as error:
                self._fail(Failure(f"the MQTT client failed: {type(error).__name__}: {error}", "this is a defect"))
                raise
            lasted = asyncio.get_running_loop().time() - self._up_since if self._up_since else 0.0
            if lasted >= STABLE_AFTER:
                self._backoff.reset()
                refusals = 0
            await self._pause(lasted)

    async def _pause(self, lasted: float) -> None:
        delay = self._backoff.next()
        hint = ""
        if 0 < lasted < STABLE_AFTER:
            hint = f" after {lasted:.1f} s ({self._suspicion()})"
        log.warning("%s%s; trying again in %.1f s", clean(str(self._last)), hint, delay)
        await asyncio.sleep(delay)

    def _suspicion(self) -> str:
        """Why a broker may have ended a connection soon; MQTT 3.1.1 has no words for it."""
        if self._blamed is not None:
            return (
                f"does it refuse the message to {clean(self._blamed.topic)}? the user's rights may not cover that topic"
            )
        return f"is there another client {clean(self.client_id)}?"

    async def _connection(self) -> None:
        """One connection, from its first packet to its end, which always is an exception."""
        self._blamed = None
        if self._context is not None and self._options.cert_file:  # perhaps renewed since
            with contextlib.suppress(Failure):  # it is just being replaced: what was loaded before will do
                self._context = self._load_tls()
        link = await self._open()
        self._link_up(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(link))
                group.create_task(self._write(link))
                group.create_task(link.keep_alive())
        except BaseExceptionGroup as group:
            cause = group.exceptions[0]
            if isinstance(cause, _Closing):
                await link.close()
            elif isinstance(cause, Unreachable) and not isinstance(cause, Silent | Parted):
                self._blamed = self._outbox.ended_by_broker()
            raise cause from None
        finally:
            self._link_down()
            link.cut()

    async def _open(self) -> Link:
        """A new connection, on which the broker has let us in. Raises `Unreachable`, `TurnedAway`."""
        now = asyncio.get_running_loop().time()
        mqtt5 = self._options.mqtt5 and now >= self._old_until
        link = Link(self._options, self.client_id, self.address, mqtt5=mqtt5)
        try:
            await link.open(self._context)
        except OldBroker:
            self._speak_old(now)
            return await self._open()
        except Unanswered:
            self._unanswered += 1
            if not mqtt5:
                self._old_until = 0.0  # it was not the version
            elif self._unanswered >= UNANSWERED:
                self._speak_old(now)
            raise
        self._unanswered = 0
        return link

    def _speak_old(self, now: float) -> None:
        log.info("%s does not speak MQTT 5.0: messages go out without properties", self.address)
        self._old_until, self._unanswered = now + OLD, 0

    def _load_tls(self) -> ssl.SSLContext:
        options = self._options
        return tls.client_context(
            ca_file=options.ca_file, cert_file=options.cert_file, key_file=options.key_file, verify=options.verify
        )

    def _link_up(self, link: Link) -> None:
        log.info("connected to %s as %s", self.address, clean(self.client_id))
        self._up_since = asyncio.get_running_loop().time()
        self._outbox.link_up(link.receive_maximum)
        self._inbox.link_up(link.session_present)
        self._subscriptions.link_up(link.session_present)
        self._up.set()
        self._wake.set()

    def _link_down(self) -> None:
        self._up.clear()
        self._inbox.link_down()
        self._replies.clear()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, link: Link) -> None:
        while True:
            if self._inbox.full:
                link.pause()
                await self._inbox.room()
                link.resume()
            packet = await link.receive()
            if isinstance(packet, PublishPacket):
                self._received(packet)
            elif isinstance(packet, (PubackPacket, PubcompPacket)):
                self._outbox.confirmed(packet.packet_id)
                self._wake.set()
            elif isinstance(packet, five.Denied):
                self._outbox.denied(packet.packet_id, packet.reason)
                self._wake.set()
            elif isinstance(packet, SubackPacket):
                for code in packet.payload.return_codes:
                    self._subscriptions.answered(packet.variable_header.packet_id, code)
            elif isinstance(packet, PubrecPacket):
                self._outbox.received(packet.packet_id)
                await link.send(PubrelPacket.build(packet.packet_id))
            elif isinstance(packet, PubrelPacket):
                await link.send(PubcompPacket.build(packet.packet_id))

    def _received(self, packet: Any) -> None:
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        message = Message(packet.topic_name, packet.data, packet.qos, packet.retain_flag, self._last_ns)
        self._inbox.put(message, packet.packet_id if packet.qos else None, packet.dup_flag)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self, link: Link) -> None:
        await link.send(*self._next_subscribes(link))  # before anything is published: it may be for us
        while True:
            self._wake.clear()
            while await self._write_some(link):
                pass
            if self._closing:
                raise _Closing
            await self._wake.wait()

    async def _write_some(self, link: Link) -> bool:
        """One write of what there is; False when there was nothing."""
        packets = self._next_subscribes(link)
        sent: list[Entry] = []
        while len(packets) < WRITE_PACKETS:
            if self._replies:
                packets.append(self._replies.popleft())
            elif (entry := self._outbox.next(self._packet_id)) is not None:
                packet = _packet(link, entry)
                if link.mqtt5 and not entry.released and (why := five.refusal(entry, len(packet), link.takes)):
                    self._outbox.unsent(entry, why)
                    continue
                packets.append(packet)
                sent.append(entry)
            else:
                break
        if not packets:
            return False
        try:
            await link.send(*packets)
        except Unreachable as lost:
            _settle(sent, NotConfirmed("the connection ended while a QoS 0 message was sent", str(lost)))
            raise
        _settle(sent, None)
        return True

    def _next_subscribes(self, link: Link) -> list[Any]:
        return [
            five.subscribe(subscription.packet_id, subscription.filter, subscription.qos)
            if link.mqtt5
            else SubscribePacket.build([(subscription.filter, subscription.qos)], subscription.packet_id)
            for subscription in self._subscriptions.to_send(self._packet_id)
        ]

    def _packet_id(self) -> int:
        """The next packet identifier that is free, 1 to 65535 [MQTT-2.3.1-2]."""
        while True:
            self._last_id = self._last_id % 65535 + 1
            if not self._outbox.uses(self._last_id) and not self._subscriptions.uses(self._last_id):
                return self._last_id

    def _acknowledge(self, packet_id: int, qos: int) -> None:
        self._replies.append((PubackPacket if qos == 1 else PubrecPacket).build(packet_id))
        self._wake.set()

    # -- failing ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._task is None:
            raise Closed("the MQTT client is not started", "use it as `async with Client(...) as client:`")

    def _fail(self, failure: Failure) -> None:
        """From now on everything raises `failure`, and whoever waits is told."""
        if self._failure is not None:
            return
        self._failure = failure
        self._outbox.fail(failure)
        self._subscriptions.fail(failure)
        self._inbox.wake()
        self._up.set()

    def _unconfirmed(self, entry: Entry, timeout: float | None) -> Failure:
        if isinstance(self._last, TurnedAway) and not self.connected:
            return self._last
        message = f"the broker did not confirm the message to {entry.topic!r} within {timeout or 0:g} s"
        if entry.ended:
            message += f"; it closed the connection {entry.ended} times when it was sent"
            return NotConfirmed(message, "the user's rights may not cover the topic; the broker's log says why")
        return NotConfirmed(message, str(self._last) if self._last else f"is {self.address} overloaded?")


def _packet(link: Link, entry: Entry) -> Any:
    if entry.released:
        return PubrelPacket.build(entry.packet_id)
    if link.mqtt5:
        return five.publish(entry)
    packet_id = entry.packet_id if entry.qos else None
    return PublishPacket.build(entry.topic, entry.payload, packet_id, entry.dup, entry.qos, entry.retain)


def _settle(entries: list[Entry], error: Failure | None) -> None:
    """QoS 0 is done when it is written, for better or worse."""
    for entry in entries:
        if entry.qos or entry.done.done():
            continue
        if error is None:
            entry.done.set_result(None)
        else:
            entry.done.set_exception(error)
