"""`python -m tests.bench [SCENARIO...]`: our broker beside others, on this machine, in one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import report
from tests.bench.brokers import (
    Amqtt,
    Broker,
    EtcdSystem,
    Foreign,
    Mosquitto,
    MosquittoNoDelay,
    Reflector,
    System,
    Tserve,
    TserveCompiled,
)  # fmt: skip
from tests.bench.runner import Result, run_scenario
from tests.bench.scenarios import SCENARIOS, Scenario
from tstack.errors import Failure

ROUNDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name and say what came out."""
    parser = _parser()
    args = parser.parse_args(argv)
    names = [scenario.name for scenario in SCENARIOS]
    if unknown := set(args.scenario) - set(names):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [scenario for scenario in SCENARIOS if not args.scenario or scenario.name in args.scenario]
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for scenario in chosen:
                brokers = _brokers(args, scenario, Path(folder))
                rounds = 1 if args.quick else args.rounds
                results += run_scenario(scenario, brokers, rounds, 0.5 if args.quick else 1.0, _say)
    except Failure as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    if args.write:
        words = " ".join(["python -m tests.bench", *args.scenario, *(["--quick"] if args.quick else []), "--write"])
        report.write(results, _versions(Path()), words)
    if args.json:
        _write_json(args.json, results)
    return 1 if any(result.trouble for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("scenario", nargs="*", help="what to run; none: everything")
    parser.add_argument("--quick", action="store_true", help="one short round, and fewer peers: a look, no result")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each broker is measured (default 3)")
    parser.add_argument("--brokers", default="", help="only these, as in tserve,mosquitto")
    parser.add_argument("--write", action="store_true", help=f"write tables and plot into {report.PAGE.name}")
    parser.add_argument("--json", type=Path, help="write every report of every round into this file")
    foreign = parser.add_argument_group("a broker that runs already")
    foreign.add_argument("--against", metavar="HOST:PORT", help="measure that one instead")
    foreign.add_argument("--user", default="", help="user name; %%d becomes the client's number")
    foreign.add_argument("--password", default="", help="password of every user")
    foreign.add_argument("--pid", type=int, default=0, help="its process, to read CPU time and memory")
    return parser


def _brokers(args: argparse.Namespace, scenario: Scenario, folder: Path) -> list[Broker]:
    if args.against:
        return [Foreign(args.against, args.user, args.password, args.pid)]
    everyone = scenario.name == "connect-open"
    place = folder / scenario.name
    mosquitto = MosquittoNoDelay if scenario.name == "latency-1000" else Mosquitto
    kinds: list[type[Broker]] = [mosquitto, Tserve]
    if scenario.kind == "pubsub" and not args.quick:
        kinds.append(TserveCompiled)
    if scenario.kind in ("rights", "register"):
        kinds = [System, EtcdSystem]
    if scenario.name == "latency-1000":
        kinds.insert(0, Mosquitto)
    if (scenario.kind == "pubsub" or everyone) and (not args.quick or scenario.name == "p2p-q0"):
        kinds.append(Reflector)
    if scenario.amqtt and not args.quick:
        kinds.append(Amqtt)
    wanted = set(filter(None, args.brokers.split(",")))
    return [kind(place / kind.name, open_to_all=everyone) for kind in kinds if not wanted or kind.name in wanted]


def _versions(folder: Path) -> list[str]:
    kinds: tuple[type[Broker], ...] = (Tserve, Mosquitto, Amqtt)
    versions = []
    for kind in kinds:
        with contextlib.suppress(Failure):
            versions.append(kind(folder).version())
    return versions


def _say(line: str) -> None:
    print(line, flush=True)


def _write_json(path: Path, results: Sequence[Result]) -> None:
    data = [
        {"scenario": result.scenario.name, "broker": result.broker, "trouble": result.trouble, "rounds": result.reports}
        for result in results
    ]
    path.write_text(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "results": data}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
