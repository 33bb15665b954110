"""Runs a scenario against brokers in turn, round by round, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bench import generator
from tests.bench.brokers import Broker
from tests.bench.generator import Report
from tests.bench.peers import Foreign
from tests.bench.scenarios import Scenario
from tstack.errors import Failure

_runs = itertools.count(1)

ONCE = frozenset({"aedes", "amqtt", "reflector"})
"""Measured in the first round only: two are slow, the other one only shows that there is room above."""

AHEAD_OF_SLOW = {"amqtt": 20_000, "aedes": 20_000}
"""Deliveries that a flood may be ahead of such a broker's subscribers: that is some seconds of work already."""

START_PATIENCE = 300.0
"""Seconds that a broker may take to start with a million things, and to stop."""

TROUBLE = (Exception, pytest.fail.Exception, pytest.skip.Exception)
"""What must not end the other measurements: a broker that is missing, fails, or breaks the runner's own code."""

QUIET = 0.1
"""Before a run, others may use this share of the machine; there is some patience with more."""

_patience = 60.0
"""Seconds that may still be spent, in all, on waiting for others to be quiet."""


@dataclass
class Result:
    """All rounds of one scenario against one broker."""

    scenario: Scenario
    broker: str
    reports: list[Report] = field(default_factory=list)
    trouble: str = ""
    """Why there is no figure, or not from every round."""
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))

    @property
    def figures(self) -> list[float]:
        """The scenario's figure in each round."""
        return [figure(report, self.scenario.figure) for report in self.reports]

    @property
    def median(self) -> float:
        """The median round."""
        return statistics.median(self.figures)

    @property
    def middle(self) -> Report:
        """The report of the round whose figure is the median, or the lower one of two."""
        chosen = statistics.median_low(self.figures)
        return self.reports[self.figures.index(chosen)]

    @property
    def spread(self) -> float:
        """Noise: the distance between best and worst round, as a share of the median."""
        return (max(self.figures) - min(self.figures)) / self.median if self.median else 0.0

    def total(self, name: str) -> int:
        """A counter summed over all rounds."""
        return int(sum(report.get(name, 0) for report in self.reports))


def figure(report: Report, path: str) -> float:
    """A number in a report; a dot goes into an object."""
    value: object = report
    for step in path.split("."):
        assert isinstance(value, dict)
        value = value[step]
    assert isinstance(value, int | float)
    return float(value)


def limited_by_generator(report: Report) -> bool:
    """Was the generator's core busy and the broker's not? Then the figure says what the broker does at least."""
    if report.get("target_rate"):
        return False  # then it waits for the clock without sleeping
    return bool(report.get("self_cpu_share", 0) > 0.95 and report.get("broker_cpu_share", 1) < 0.9)


def run_scenario(
    scenario: Scenario, brokers: Sequence[Broker], rounds: int, quick: bool, say: Callable[[str], None],
    wait: Callable[[], None] | None = None,
) -> list[Result]:  # fmt: skip
    """Measure each of the brokers `rounds` times, those in `ONCE` once. Whatever goes wrong is told in the results.

    `wait` is called before each run; left out, it waits until nobody else uses the machine.
    """
    wait = wait or wait_for_quiet
    results = {broker.name: Result(scenario, broker.name) for broker in brokers}
    started: list[Broker] = []
    try:
        for broker in brokers:
            try:
                generator.enough_files(scenario.connections(_scaled(scenario, quick)))
                broker.start()
                started.append(broker)
            except TROUBLE as trouble:
                results[broker.name].trouble = _words(trouble)
                say(_line(results[broker.name]))
        for number in range(min(rounds, scenario.rounds)):
            for broker in started if number % 2 == 0 else started[::-1]:
                result = results[broker.name]
                if (number and broker.name in ONCE) or result.trouble:
                    continue
                try:
                    if number and scenario.fresh:
                        broker.stop()
                        broker.start()
                    broker.settle()
                    wait()
                    result.reports.append(_watched(scenario, broker, quick))
                except TROUBLE as trouble:
                    said = broker.complaint()
                    result.trouble = _words(trouble) + (f"; the broker said: {said}" if said else "")
                say(_line(result))
    finally:
        for broker in started:
            broker.stop(START_PATIENCE)
    return list(results.values())


def _words(trouble: BaseException) -> str:
    kind = (
        "" if isinstance(trouble, (Failure, pytest.fail.Exception, pytest.skip.Exception)) else type(trouble).__name__
    )
    return " ".join(filter(None, (kind, *str(trouble).split())))[:500]


def _scaled(scenario: Scenario, quick: bool) -> dict[str, object]:
    return {**scenario.options, **(scenario.quick if quick else {})}


def _watched(scenario: Scenario, broker: Broker, quick: bool) -> Report:
    """One run, and in its report how much of the machine somebody else used meanwhile: `elsewhere_share`."""
    before, ours, begun = machine_seconds(), _our_seconds(broker), time.monotonic()
    report = run_once(scenario, broker, quick=quick)
    all_cores = (time.monotonic() - begun) * (os.cpu_count() or 1)
    # a broker that was restarted counts from nothing again, and its first life is among the children's
    used = machine_seconds() - before - (_our_seconds(broker) - ours)
    report["elsewhere_share"] = round(max(0.0, used / all_cores), 3)
    return report


def wait_for_quiet() -> None:
    """Wait until nobody else uses the machine, or patience has run out."""
    global _patience
    while _patience > 0:
        before, begun = machine_seconds(), time.monotonic()
        time.sleep(0.25)
        took = time.monotonic() - begun
        if (machine_seconds() - before) / (took * (os.cpu_count() or 1)) < QUIET:
            return
        _patience -= took


def machine_seconds() -> float:
    """CPU time that the machine has given to anybody, or lost to its host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _our_seconds(broker: Broker) -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return broker.cpu_seconds() + sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_once(scenario: Scenario, broker: Broker, *, quick: bool = False) -> Report:
    """One run, half as long with `quick`. Topics are new each time: what is left of an earlier run reaches nobody."""
    speed = 0.5 if quick else 1.0
    if scenario.kind in ("rights", "register"):
        return broker.live_report(scenario.kind, scenario.seconds * speed, _scaled(scenario, quick))
    options = {**broker.options(), **_clients(scenario, broker, f"r{next(_runs)}"), **_scaled(scenario, quick)}
    if broker.name in AHEAD_OF_SLOW:
        options["ahead"] = AHEAD_OF_SLOW[broker.name]
    if scenario.kind == "storm":
        return _storm(broker, options)
    if scenario.kind == "startup":
        return _start_up(broker, options)
    if scenario.seconds:
        options |= {"seconds": round(scenario.seconds * speed, 3), "warmup": scenario.warmup}
    if scenario.kind == "idle":
        return _hold(options)
    return generator.load(scenario.kind, options)


def _clients(scenario: Scenario, broker: Broker, run: str) -> dict[str, object]:
    user = broker.user if isinstance(broker, Foreign) else "dev%d"
    topic = f"{user}/{run}" if "%d" in user else f"{user or 'bench'}/%d/{run}"
    match scenario.shape:
        case "pairs" if scenario.kind == "retained":
            return {"topic": topic, "filter": topic.replace("dev%d", "+") + "/#", **broker.reader()}
        case "pairs":
            return {"topic": topic, "layout": "p2p", **(broker.reader() if scenario.kind == "subscriptions" else {})}
        case "out":
            filter_, extra = topic.replace("%d", "0"), {"sub_user": user.replace("%d", "0")}
        case "in":
            levels = ("+" if "%d" in level else level for level in topic.split("/"))
            filter_, extra = "/".join(levels), {}
        case "share":
            levels = ("+" if "%d" in level else level for level in topic.split("/"))
            return {"topic": topic, "filter": f"$share/{run}/{'/'.join(levels)}", "layout": "share", **broker.reader()}
    return {"topic": topic, "filter": filter_, "layout": "all", **extra, **broker.reader()}


def _hold(options: dict[str, object]) -> Report:
    """Idle connections: the generator reports when they are all open, and closes them when its input ends."""
    done = subprocess.run(
        generator.command("idle", options), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=generator.PATIENCE,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failure(f"the load generator gave up: {done.stderr.strip() or done.returncode}")
    report: Report = json.loads(done.stdout)
    return report


def _storm(broker: Broker, options: dict[str, object]) -> Report:
    """The broker ends and starts under its clients; the generator reports when all of them are back."""
    options.pop("pid", None)
    process = subprocess.Popen(
        generator.command("storm", options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":  # comes, or ends: the generator gives up by itself
                raise Failure(f"the load generator gave up: {process.communicate(timeout=10)[1].strip()}")
            broker.stop()
            broker.start(keep=True)
            output, said = process.communicate(timeout=generator.PATIENCE)
        finally:
            process.kill()
    if process.returncode != 0:
        raise Failure(f"the load generator gave up: {said.strip() or process.returncode}")
    report: Report = json.loads(output)
    report["cpu_us_per_message"] = broker.cpu_seconds() * 1e6 / report["connections"]
    return report | {"rss_kib": broker.memory_kib()}


def _start_up(broker: Broker, options: dict[str, object]) -> Report:
    """Sessions and retained messages are left behind, the broker stops, and starts on what it kept."""
    generator.load("sessions", {**options, "tag": "kept", "qos": 1})
    generator.load("retained", {**options, "subscribers": 0})
    broker.settle(120.0)
    full = broker.memory_kib()
    begun = time.monotonic()
    broker.stop(START_PATIENCE)
    stopped = time.monotonic() - begun
    stored = broker.stored_bytes()
    ready = broker.start(keep=True, patience=START_PATIENCE)
    cpu, rss = broker.cpu_seconds(), broker.memory_kib()
    topic = str(options["topic"]).replace("%d", "0")
    again = {**broker.options(), **broker.reader(), "topic": topic, "filter": f"{topic}/#", "store": 0, "publishers": 1,
             "messages": options["messages"]}  # fmt: skip
    report = generator.load("retained", again)
    there = {name: report[name] for name in ("expected", "delivered", "lost", "duplicates", "corrupt")}
    return {
        "scenario": "startup", "ready_seconds": ready, "ready_cpu_s": cpu, "rss_kib": rss, "full_rss_kib": full,
        "stop_seconds": stopped, "stored_bytes": stored, "sessions": options["connections"],
        "retained": int(str(options["publishers"])) * int(str(options["messages"])), **there,
    }  # fmt: skip


ASIDE = (
    ("refused", "refused", 0), ("dropped", "dropped", 0), ("store_rate", "stored/s", 0), ("fill_rate", "stored/s", 0),
    ("suback_ms", "SUBACK ms", 0), ("insert_rate", "inserted/s", 0), ("bytes_per_subscription", "bytes each", 0),
    ("bytes_per_message", "bytes each", 0), ("stored_bytes", "bytes on disk", 0), ("stop_seconds", "s to stop", 1),
)  # fmt: skip
"""Figures that some scenarios have beside their own: where in the report, what to call them, digits."""


def _line(result: Result) -> str:
    if result.trouble:
        return f"{result.scenario.name:14} {result.broker:18} {result.trouble}"
    report = result.reports[-1]
    parts = [f"{result.scenario.name:14} {result.broker:18} {result.figures[-1]:>14,.1f} {result.scenario.unit}"]
    if "expected" in report:
        parts.append(f"delivered {report['delivered']}/{report['expected']}")
    if report.get("cpu_us_per_message") and result.scenario.figure != "cpu_us_per_message":
        parts.append(f"{report['cpu_us_per_message']:.2f} us/msg")
    if "latency_us" in report and result.scenario.figure != "latency_us.p99":
        parts.append(f"p99 {report['latency_us']['p99'] / 1000:.2f} ms")
    parts += [f"{words} {report[name]:,.{digits}f}" for name, words, digits in ASIDE if report.get(name)]
    if "others_us" in report:
        parts.append(
            f"others' p99 {report['others_us']['p99'] / 1000:.1f} ms, max {report['others_us']['max'] / 1000:.1f} ms"
        )
    if report["elsewhere_share"] > 0.05:
        parts.append(f"{100 * report['elsewhere_share']:.0f} % of the machine used elsewhere")
    wrong = [f"{name} {report[name]}" for name in ("duplicates", "reordered", "corrupt", "misrouted", "closed")
             if report.get(name)]  # fmt: skip
    if limited_by_generator(report):
        parts.append("generator's limit")
    return ", ".join(parts + wrong)
