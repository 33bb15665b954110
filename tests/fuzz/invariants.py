"""What holds for a router between any two steps, whatever was sent: its parts agree, and everything is bounded."""

from __future__ import annotations

from tests.routing.wire import World
from tstack.routing import outlet
from tstack.routing.channel import HEADER, Channel
from tstack.routing.session import Session

READ = 255
"""Bytes of one step: what may be kept of them on top, by a connection that is not read from."""


def check_state(world: World, has_journal: bool) -> None:
    """Fail when something disagrees or has outgrown its bound. Nothing is held back without a journal."""
    router = world.router
    limits = router.limits
    sessions = list(router.sessions)
    assert not router.dirty
    assert not router.awake
    assert not router.replaying
    assert len(sessions) == len(router.sessions) <= limits.sessions
    assert router.sessions.connected == sum(session.channel is not None for session in sessions)
    assert router.tree.count == sum(len(session.subscriptions) for session in sessions)
    for user in world.users.permissions:
        mine = [session for session in sessions if session.user == user]
        assert len(mine) <= limits.sessions_per_user
        assert set(router.sessions.of_user(user)) == set(mine)
    kept = list(router.retained)
    assert router.retained.count <= limits.retained_messages
    assert router.retained.bytes <= limits.retained_bytes
    assert router.retained.count >= len(kept)  # those of $-topics are not among them
    assert router.system.count == 0
    for session in sessions:
        _check_session(session)
    for line in world.lines:
        _check_channel(line.channel)
        assert has_journal or line.channel.held is None
    waiting = sum(len(session.queue or ()) for session in sessions)
    assert router.sessions.queued()[0] == waiting
    counters = router.counters
    assert min((counters.bytes_received, counters.messages_received, counters.messages_sent)) >= 0
    assert all(count > 0 for table in (counters.dropped, counters.closed, counters.hits) for count in table.values())


def _check_session(session: Session) -> None:
    limits = session.limits
    queue = session.queue or ()
    assert len(session.subscriptions) <= limits.subscriptions
    assert len(session.inflight) <= limits.inflight
    assert len(session.received or ()) <= limits.receive_maximum
    # a message that a session receives by several subscriptions needs room for one alone
    assert len(queue) <= limits.queue_messages + limits.subscriptions
    assert session.queued_bytes == sum(delivery.message.size for delivery in queue)
    assert session.channel is None or session.channel.session is session
    assert session.channel is not None or session.expiry > 0
    assert all(session.permissions.may_subscribe(name) for name in session.subscriptions), "wider than the rights"
    assert all(session.permissions.may_receive(one.message.topic.decode()) for one in queue), "beyond the rights"
    if session.channel is not None and session.channel.room > 0:
        assert not queue or len(session.inflight) >= session.window, "it waits and could be sent"


def _check_channel(channel: Channel) -> None:
    limits = channel.router.limits
    assert len(channel.routes) <= limits.routes
    assert len(channel.aliases or ()) <= limits.topic_aliases
    if channel.state == outlet.CLOSED:
        assert channel._chunks is None
        assert channel.session is None or channel.session.channel is not channel
        assert channel.waiting_for is None or channel not in (channel.waiting_for.waiters or ())
        assert channel.reason.isprintable()
        assert len(channel.reason) < 1000
        return
    assert (channel.session is not None) == (channel.state == outlet.OPEN)
    assert channel.session is None or channel.session.channel is channel
    if channel._chunks is not None:
        assert channel._have == sum(map(len, channel._chunks))
        most = limits.packet if channel.state == outlet.OPEN else limits.packet_before_login
        assert channel._have <= most + HEADER + READ, "more is kept than may come"
    if channel.waiting_for is not None:
        assert channel in (channel.waiting_for.waiters or ())
        assert not channel.waiting_for.has_room()
