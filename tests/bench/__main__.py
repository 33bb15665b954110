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
from tests.bench.brokers import Broker
from tests.bench.kept import load_results, save_results
from tests.bench.peers import KINDS, Foreign
from tests.bench.runner import TROUBLE, Result, run_scenario
from tests.bench.scenarios import SCENARIOS, Scenario

ROUNDS = 3

LOOK = frozenset({"mosquitto", "mosquitto-persistent", "tserve", "tserve-system", "tserve-etcd"})
"""Who takes part in a quick run, and in `p2p-q0` everybody."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name and say what came out."""
    parser = _parser()
    args = parser.parse_args(argv)
    names = [scenario.name for scenario in SCENARIOS]
    if unknown := set(args.scenario) - set(names):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if unknown := set(filter(None, args.brokers.split(","))) - set(KINDS):
        parser.error(f"no such broker: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    chosen = [scenario for scenario in SCENARIOS if not args.scenario or scenario.name in args.scenario]
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for scenario in chosen:
                brokers = _brokers(args, scenario, Path(folder))
                results += run_scenario(scenario, brokers, 1 if args.quick else args.rounds, args.quick, _say)
    except KeyboardInterrupt:
        print("bench: interrupted; what was measured is kept", file=sys.stderr)
    finally:
        _keep(args, results)
    for result in results:
        if result.trouble:
            print(f"bench: no figure, or not every one: {result.scenario.name} {result.broker}: {result.trouble}")
    return 1 if any(result.trouble for result in results) else 0


def _keep(args: argparse.Namespace, results: Sequence[Result]) -> None:
    """Nothing that was measured is lost, whatever ended the run."""
    if args.json:
        _write_json(args.json, results)
    if not results or args.quick or args.against or args.brokers:
        everything = list(results)
    else:
        everything = load_results(results)
        save_results(everything)
    if args.write and results:
        flags = ["--quick"] if args.quick else [f"--rounds {args.rounds}"] if args.rounds != ROUNDS else []
        words = " ".join(["python -m tests.bench", *args.scenario, *flags, "--write"])
        report.write(everything, _versions(everything), words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("scenario", nargs="*", help="what to run; none: everything")
    parser.add_argument("--quick", action="store_true", help="one short round, small, fewer peers: a look, no result")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each broker is measured (default 3)")
    parser.add_argument("--brokers", default="", help="only these, as in tserve,mosquitto")
    parser.add_argument("--write", action="store_true", help=f"write tables and plots into {report.PAGE.name}")
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
    wanted = set(filter(None, args.brokers.split(",")))
    names = list(scenario.brokers)
    if wanted:
        names = [name for name in names if name in wanted]
    elif args.quick and scenario.name != "p2p-q0":
        names = [name for name in names if name in LOOK or "tserve" not in scenario.brokers]
    return [KINDS[name](folder / scenario.name / name, scenario.access, scenario.users) for name in names]


def _versions(results: Sequence[Result]) -> list[str]:
    versions = []
    for name in ("tserve", "tserve-compiled", "mosquitto", "aedes", "amqtt"):
        if any(result.broker == name and result.reports for result in results):
            with contextlib.suppress(*TROUBLE):
                versions.append(KINDS[name](Path()).version())
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
