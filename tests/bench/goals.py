"""What was to be reached, and whether it is: one row of a table for each goal.

Judged is the compiled form, which a normal install has where there is a C compiler; plain Python stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.numbers import number
from tests.bench.runner import Result, figure

Measured = Mapping[tuple[str, str], Result]
"""Results with at least one figure, by scenario and broker."""

PURE = ("tserve",)
MOSQUITTO = ("mosquitto-nodelay", "mosquitto")


@dataclass(frozen=True)
class Goal:
    """`value` of a broker of ours, in `unit`, that shall be `least` at least, or, where that is 0, `most` at most."""

    words: str
    unit: str
    value: Callable[[Measured, str], float | None]
    least: float = 0.0
    most: float = 0.0
    brokers: tuple[str, str] = ("tserve-compiled", "tserve")
    """Whom it is judged by, and who is shown beside it."""


def verdict(value: float | None, least: float, most: float) -> str:
    """Reached, or missed by how much, or not measured."""
    if value is None:
        return "not measured"
    if least:
        return "reached" if value >= least else f"missed: {100 * value / least:.0f} % of it"
    if value <= most:
        return "reached"
    return f"missed: {100 * (value / most - 1):.0f} % too much" if most else "missed"


def _plain(scenario: str, path: str = "") -> Callable[[Measured, str], float | None]:
    def value(measured: Measured, broker: str) -> float | None:
        result = measured.get((scenario, broker))
        if result is None:
            return None
        return result.median if not path else figure(result.middle, path)

    return value


def _ratio(scenario: str, against: Sequence[str] = MOSQUITTO) -> Callable[[Measured, str], float | None]:
    def value(measured: Measured, broker: str) -> float | None:
        ours = measured.get((scenario, broker))
        other = next((measured[scenario, name] for name in against if (scenario, name) in measured), None)
        if ours is None or other is None or ours.broker == other.broker or not other.median:
            return None
        return ours.median / other.median

    return value


def _lost(scenario: str) -> Callable[[Measured, str], float | None]:
    def value(measured: Measured, broker: str) -> float | None:
        result = measured.get((scenario, broker))
        return None if result is None else float(result.total("lost"))

    return value


EMBEDDED, ON_ETCD = ("", "tserve-system"), ("", "tserve-etcd")

GOALS = (
    Goal("p2p, QoS 0: mosquitto's rate", "times", _ratio("p2p-q0"), least=10),
    Goal("p2p, QoS 0: the rate of plain Python", "times", _ratio("p2p-q0", PURE), least=3),
    Goal("fan-out to 1000: mosquitto's rate", "times", _ratio("fanout-1000"), least=10),
    Goal("p2p, QoS 1: mosquitto's rate", "times", _ratio("p2p-q1"), least=5),
    Goal("p2p, QoS 1: messages lost", "messages", _lost("p2p-q1"), most=0),
    Goal("sparse: mosquitto's CPU time per message", "times", _ratio("sparse"), most=1),
    Goal("latency at 1000/s: mosquitto's p99, with nodelay", "times", _ratio("latency-1000"), most=1),
    Goal("memory of an idle connection", "bytes", _plain("idle"), most=4096),
    Goal("memory of an idle TLS connection", "bytes", _plain("idle-tls"), most=45 * 1024),
    Goal("connects, open: mosquitto's rate", "times", _ratio("connect-open"), least=0.5),
    Goal("connects with client certificates", "a second", _plain("connect-cert"), least=1000),
    Goal("durable QoS 1, the session connected", "msg/s", _plain("durable-q1"), least=20_000),
    Goal("durable QoS 1, the session away", "msg/s", _plain("durable-absent"), least=20_000),
    Goal("rights to effect beside 10 000 connections, p99", "ms", _plain("rights-10k"), most=100, brokers=EMBEDDED),
    Goal("the same on etcd", "ms", _plain("rights-10k"), most=100, brokers=ON_ETCD),
)


def table(results: Sequence[Result]) -> str:
    """The goals as a Markdown table."""
    measured = {(result.scenario.name, result.broker): result for result in results if result.reports}
    lines = ["| goal | to reach | compiled | plain Python | |", "|---|--:|--:|--:|---|"]
    for goal in GOALS:
        judged, beside = (goal.value(measured, broker) for broker in goal.brokers)
        bound = f"at least {goal.least:,g}" if goal.least else f"at most {goal.most:,g}"
        shown = ["-" if value is None else number(value) for value in (judged, beside)]
        judgement = verdict(judged if judged is not None else beside, goal.least, goal.most)
        lines.append(f"| {goal.words} | {bound} {goal.unit} | {' | '.join(shown)} | {judgement} |")
    return "\n".join(lines) + "\n"
