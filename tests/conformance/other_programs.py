"""Other people's clients that are programs: mosquitto's, and mqtt.js in node. See `other_clients.py`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.other_clients import EXPIRY, NOTHING, Extra, Heard, OtherClient, Will
from tests.processes import PATIENCE, ROOT, Running, lacking, need

# -- mosquitto_pub and mosquitto_sub -----------------------------------------------------------------------------------

FORMAT = "message\t%t\t%x\t%q\t%r\t%C\t%R\t%D\t%P\t%E"


class Mosquitto(OtherClient):
    """mosquitto_sub for what comes in, one filter at a time, and a mosquitto_pub for each message that goes out."""

    WAYS = ("tcp", "tls")
    KEEPS_ITS_WILL = True
    _sub: Running | None = None
    _filter: tuple[str, int] | None = None
    _flags: tuple[str, ...] = ()
    _seen = 0

    def _access(self, client_id: str) -> list[str]:
        where = self.where
        flags = [
            "-h",
            "localhost",
            "-p",
            str(where.port),
            "-V",
            {4: "mqttv311", 5: "mqttv5"}[self.version],
            "-i",
            client_id,
        ]
        if where.way == "tls":
            return [
                *flags,
                "--cafile",
                str(where.ca),
                "--cert",
                str(where.certificate),
                "--key",
                str(where.certificate),
            ]
        return [*flags, "-u", where.user, "-P", where.password]

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        stays = ["-c", *(("-x", str(EXPIRY)) if self.version == 5 else ())]
        last = (
            []
            if will is None
            else ["--will-topic", will.topic, "--will-payload", will.payload.decode(), "--will-qos", str(will.qos)]
        )
        self._flags = (*(() if clean else stays), *last)
        if self._filter is not None and not clean:
            await self.subscribe(*self._filter)

    async def subscribe(self, filter_: str, qos: int) -> None:
        assert self._sub is None
        self._filter = (filter_, qos)
        self._seen = 0
        line_by_line = [need("stdbuf"), "-oL"]  # into a pipe it would print only now and then
        wanted = ["-t", filter_, "-q", str(qos), "-F", FORMAT, "-d"]
        self._sub = Running(
            [*line_by_line, need("mosquitto_sub"), *self._access(self.client_id), *self._flags, *wanted]
        )
        await asyncio.to_thread(self._sub.wait_for, rf"^Subscribed \(mid: \d+\): {qos}")

    @property
    def heard(self) -> list[Heard]:  # type: ignore[override]
        """Taken from what mosquitto_sub has printed since it was last started."""
        lines = self._sub.output.splitlines() if self._sub is not None else ()
        return self._before + [_parsed(line) for line in lines if line.startswith("message\t")]

    @heard.setter
    def heard(self, value: list[Heard]) -> None:
        self._before = value

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        flags = ["-t", topic, "-q", str(qos), *(["-r"] if retain else []), *(["-s"] if payload else ["-n"])]
        for name, value in (
            ("content-type", extra.content_type), ("response-topic", extra.response_topic),
            ("correlation-data", extra.correlation.decode()), ("message-expiry-interval", str(extra.expiry or "")),
        ):  # fmt: skip
            flags += ["-D", "publish", name, value] if value else []
        for key, value in extra.user:
            flags += ["-D", "publish", "user-property", key, value]
        args = [need("mosquitto_pub"), *self._access(f"{self.client_id}-pub"), *flags]
        done = await asyncio.to_thread(
            subprocess.run, args, input=payload, capture_output=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), done

    async def close(self) -> None:
        if self._sub is not None:
            self.heard = self.heard
            sub, self._sub = self._sub, None
            await asyncio.to_thread(sub.__exit__, None, None, None)


def _parsed(line: str) -> Heard:
    _, topic, payload, qos, retain, kind, answer, correlation, user, expiry = line.split("\t")
    pairs = tuple((pair.partition(":")[0], pair.partition(":")[2]) for pair in user.split())
    extra = Extra(kind, answer, correlation.encode(), pairs, int(expiry or 0))
    return Heard(topic, bytes.fromhex(payload), int(qos), retain == "1", extra)


# -- mqtt.js -----------------------------------------------------------------------------------------------------------

MQTTJS = "5.16.0"
CACHE = ROOT / ".mqttjs_cache" / MQTTJS


def mqttjs() -> Path:
    """The folder with mqtt.js, installed by npm the first time. Without npm, or offline: skipped; in CI that fails."""
    if not (CACHE / "node_modules" / "mqtt").is_dir():
        npm = need("npm")
        CACHE.parent.mkdir(exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=CACHE.parent))
        try:
            wanted = ["--no-audit", "--no-fund", "--ignore-scripts", f"mqtt@{MQTTJS}"]
            done = subprocess.run(
                [npm, "install", "--prefix", str(new), *wanted], capture_output=True, text=True, timeout=110, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            if done.returncode:
                lacking(f"npm cannot install mqtt.js: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            with contextlib.suppress(OSError):  # somebody else was faster
                new.rename(CACHE)
        except subprocess.TimeoutExpired:
            lacking("npm cannot install mqtt.js: it hangs")
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return CACHE


class MqttJs(OtherClient):
    """mqtt.js in a node of its own, told what to do by lines of JSON (`mqttjs.js`)."""

    _node: asyncio.subprocess.Process | None = None

    async def open(self, clean: bool = True, will: Will | None = None) -> None:
        folder = await asyncio.to_thread(mqttjs)
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._node = await asyncio.create_subprocess_exec(
            need("node"), str(Path(__file__).with_name("mqttjs.js")), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, limit=1 << 22, env={**os.environ, "NODE_PATH": str(folder / "node_modules")},
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read())
        where = self.where
        scheme, path = {"tcp": ("mqtt", ""), "tls": ("mqtts", ""), "ws": ("ws", "/mqtt")}[where.way]
        options: dict[str, Any] = {
            "protocolVersion": self.version, "clientId": self.client_id, "clean": clean, "reconnectPeriod": 0,
        }  # fmt: skip
        user, password = where.login
        if user is not None:
            options |= {"username": user, "password": password}
        else:
            options |= {
                "ca": where.ca.read_text(),
                "cert": where.certificate.read_text(),
                "key": where.certificate.read_text(),
            }
        if self.version == 5 and not clean:
            options["properties"] = {"sessionExpiryInterval": EXPIRY}
        if will is not None:
            options["will"] = {"topic": will.topic, "payload": will.payload.decode(), "qos": will.qos, "retain": False}
        await self._ask(do="open", url=f"{scheme}://localhost:{where.port}{path}", options=options)

    async def _read(self) -> None:
        assert self._node is not None
        assert self._node.stdout is not None
        while line := await self._node.stdout.readline():
            told = json.loads(line)
            if "topic" not in told:
                self._answers.put_nowait(told)
                continue
            extra = Extra(
                told["contentType"], told["responseTopic"], base64.b64decode(told["correlation"]),
                tuple((key, value) for key, value in told["user"]), told["expiry"],
            )  # fmt: skip
            payload = base64.b64decode(told["payload"])
            self.heard.append(Heard(told["topic"], payload, told["qos"], told["retain"], extra))

    async def _ask(self, **what: object) -> None:
        assert self._node is not None
        assert self._node.stdin is not None
        self._node.stdin.write(json.dumps(what).encode() + b"\n")
        answer = await asyncio.wait_for(self._answers.get(), PATIENCE)
        if answer["error"]:
            pytest.fail(f"mqtt.js: {answer['error']}")

    async def subscribe(self, filter_: str, qos: int) -> None:
        await self._ask(do="subscribe", filter=filter_, qos=qos)

    async def unsubscribe(self, filter_: str) -> None:
        await self._ask(do="unsubscribe", filter=filter_)

    async def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, extra: Extra = NOTHING
    ) -> None:
        properties: dict[str, Any] = {}
        if self.version == 5:
            named = {
                "contentType": extra.content_type, "responseTopic": extra.response_topic, "messageExpiryInterval": extra.expiry,
                "correlationData": base64.b64encode(extra.correlation).decode(), "userProperties": dict(extra.user),
            }  # fmt: skip
            properties = {name: value for name, value in named.items() if value}
        content = base64.b64encode(payload).decode()
        await self._ask(do="publish", topic=topic, payload=content, qos=qos, retain=retain, properties=properties)

    async def close(self) -> None:
        if self._node is None:
            return
        node, self._node = self._node, None
        assert node.stdin is not None
        node.stdin.close()  # it disconnects and ends
        try:
            await asyncio.wait_for(node.wait(), PATIENCE)
        except TimeoutError:
            node.kill()
            await node.wait()
        await asyncio.wait_for(self._reader, PATIENCE)
