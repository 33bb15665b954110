"""tstack: all of it in one process (`tstack up`), is a set-up sound (`tstack doctor`), what does a broker do (`tstack top`),
certificates by hand (`tstack pki`)."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tstack import service
from tstack.broker import collector
from tstack.broker.server import Broker
from tstack.cli import doctor, mail_run, pki, top
from tstack.cli import settings as declared
from tstack.cli.mail_in import MailIn, mail_in
from tstack.cli.mail_kept import blob_listeners, kept_mails
from tstack.cli.program import Parser, open_store, opened
from tstack.cli.program import start as start_program
from tstack.cli.reg import given_authority, registration_options
from tstack.cli.reload import Reload
from tstack.cli.serve import broker_options, check_usage, live_options
from tstack.client import Options as MqttOptions
from tstack.env import Values
from tstack.errors import Failure
from tstack.mail.blobs import Keeper
from tstack.mail.station import Station
from tstack.pki.files import CertsFolder
from tstack.registration.app import Registration
from tstack.store.interface import Store

EXAMPLES = """\
  tstack up                                   everything on this machine, state in ./var
  tstack up -port=8001 -addr=127.0.0.1:2883   on other ports
  tstack doctor                               what is wrong with this set-up?
  tstack top                                  what does the broker do now?"""

KEY_FILE = "registration.key"
"""The registration key that was made at the first start, in the data directory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command == "up":
        parser = Parser("tstack up", "The whole stack in one process.", EXAMPLES, declared.UP, "", declared.UP_DEFAULTS)
        return start_program(parser, declared.UP, arguments[1:], _up)
    if command == "doctor":
        return doctor.main(arguments[1:])
    if command == "top":
        return top.main(arguments[1:])
    if command == "pki":
        return pki.main(arguments[1:])
    parser = Parser("tstack", "The whole stack in one process.", EXAMPLES)
    parser.add_argument("command", choices=("up", "doctor", "top", "pki"), help="see tstack COMMAND --help")
    parser.parse_args(arguments)
    raise AssertionError("argparse has left the program by now")


def _up(values: Values, flags: argparse.Namespace) -> int:
    check_usage(values)
    mail_run.station_options(values)  # what is wrong with them is said before anything begins
    reload = Reload(declared.UP, values, flags, declared.UP_DEFAULTS, check_usage)
    return service.run("tstack", lambda life: _serve(life, values, reload))


async def _serve(life: service.Life, values: Values, reload: Reload) -> int:
    """Store, broker, registration service; stopped in the opposite order."""
    async with contextlib.AsyncExitStack() as parts:
        store = open_store(values)
        authority = CertsFolder(values[declared.CERTS_DIR]).ensure_authority()
        broker = Broker(store, broker_options(values), on_failure=life.stop)
        await parts.enter_async_context(opened(store, values[declared.STORE_WAIT], life.stopping))
        with collector.held_back():
            await broker.start()
        parts.push_async_callback(broker.stop)
        life.on_reload(broker.reload)
        key, fresh = _registration_key(values)
        values = values.replaced(declared.REG_KEY, key)
        if not values[declared.MQTT_URL]:
            values = values.replaced(declared.MQTT_URL, _broker_url(broker))
        ca_pem = given_authority(values) or authority.ca_pem
        registration = Registration(store, authority, ca_pem, registration_options(values))
        await registration.start()
        parts.push_async_callback(registration.stop)
        served = bool(values[declared.BLOB_ADDR] or values[declared.MAIL_API])
        keeper = await parts.enter_async_context(kept_mails(values, served=served))
        listeners = await parts.enter_async_context(blob_listeners(values, keeper))
        mqtt = await mail_run.own_options(store, values, broker.addresses)
        received = await parts.enter_async_context(mail_in(broker, values, mqtt, keeper, listeners))
        life.on_reload(received.reload)
        watching = await _mail(store, values, mqtt, life, keeper)
        if watching is not None:
            parts.push_async_callback(watching.stop)
        if fresh:  # at the end: a start that fails is none, and the next one is the first again
            _keep(key, values)
        _greet(values, broker, registration, received, watching, key, fresh)
        life.on_reload(lambda: reload(lambda new: broker.configure(live_options(broker.options, new))))
        service.notify("READY=1")
        await life.stopping.wait()
        service.notify("STOPPING=1")
    collector.leave_all()
    if failure := broker.failure or (watching.failure if watching else None):
        raise failure
    return service.EXIT_OK


async def _mail(
    store: Store, values: Values, mqtt: MqttOptions | None, life: service.Life, keeper: Keeper | None
) -> Station | None:
    """The mail watchers, started; None when the broker has no listener that they could use."""
    if mqtt is None:
        return None
    mail = mail_run.station(store, values, mqtt, life.stop, keeper)
    await mail.start(values[declared.STORE_WAIT])
    return mail


def _registration_key(values: Values) -> tuple[str, bool]:
    """The key that is set, else the one in the data directory, else a new one; and whether it is new."""
    if values[declared.REG_KEY]:
        return values[declared.REG_KEY], False
    path = Path(values[declared.DATA_DIR]) / KEY_FILE
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        key = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise Failure(
            f"the registration key in {path} cannot be read: {reason}",
            "move it away and a new one is made, or give -regkey",
        ) from None
    return (key, False) if key else (secrets.token_urlsafe(24), True)


def _keep(key: str, values: Values) -> None:
    """Write a new key down, for this user alone; all of it or nothing."""
    path = Path(values[declared.DATA_DIR]) / KEY_FILE
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # with etcd there is no store that has made it
        new.unlink(missing_ok=True)
        with open(new, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(key + "\n")
        new.rename(path)
    except OSError as error:
        raise Failure(
            f"the registration key cannot be kept in {path}: {error.strerror}",
            "make the data directory writable, or give -regkey",
        ) from None


def _broker_url(broker: Broker) -> str:
    """What devices are told: TLS when there is a TLS listener."""
    ports = {scheme: where.port for scheme, where in reversed(broker.addresses)}
    return f"ssl://localhost:{ports['mqtts']}" if "mqtts" in ports else f"tcp://localhost:{ports['mqtt']}"


def _greet(
    values: Values, broker: Broker, registration: Registration, mail: MailIn, watching: Station | None, key: str, fresh: bool
) -> None:  # fmt: skip
    """Say what is listened on and, at the first start, what to try."""
    say: list[str] = ["", "tstack is up:"]
    names = {
        "mqtt": "MQTT, plain",
        "mqtts": "MQTT over TLS",
        "ws": "WebSocket",
        "wss": "secure WebSocket",
        "http": "health and metrics",
    }
    say += [f"  {names[scheme]:20} {scheme}://{where}" for scheme, where in broker.addresses]
    if broker.options.unix is not None:
        say.append(f"  {'MQTT, Unix socket':20} {broker.options.unix}")
    say += [f"  {'registration':20} {url}" for url in registration.urls]
    say += [f"  {'mail in':20} {scheme}://{where}" for scheme, where in mail.addresses]
    say += [f"  {'mail API':20} {url}" for url in (watching.api.urls if watching is not None else ())]
    if fresh:
        device = Path(values[declared.DATA_DIR]) / "device"
        folder = f"-config-dir={shlex.quote(str(device))}"
        say += [
            "",
            f"First start. The registration key is {key}",
            f"(kept in {Path(values[declared.DATA_DIR]) / KEY_FILE}). Try it from another terminal, in this folder:",
            "",
            f"  {_tool('tregister')} -regkey={key} -regservice={registration.urls[0]} {folder}",
            f"  {_tool('tconsume')} -ctype=stdout -useconfig {folder}",
            f"  {_tool('tpublish')} {folder} -topic='{{username}}/hello' -payload='hello world'",
        ]
    say += ["", "Ctrl-C stops it."]
    print("\n".join(say), flush=True)


def _tool(name: str) -> str:
    """How to call one of the tools from here: it lies beside this one."""
    beside = Path(sys.argv[0]).parent / name
    if beside.exists() and str(beside.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        return shlex.quote(str(beside))
    return name
