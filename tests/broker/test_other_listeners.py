"""The listeners of the program, met by other people's clients: mqtt.js, paho, mosquitto, curl and openssl."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from paho.mqtt.client import MQTTv5, MQTTv311

from tests.broker.serving import Certificates
from tests.broker.test_paho import Paho
from tests.processes import Running, command, need, run, wait_until
from tstack.pki.revocation import Revoked, build_crl

MQTT_JS = "5.16.0"
SCRIPT = """
const mqtt = require('mqtt');
const [url, version, ca, topic] = process.argv.slice(1);
const options = {protocolVersion: Number(version), username: 'ann', password: 'secret', reconnectPeriod: 0};
if (ca) options.ca = require('fs').readFileSync(ca);
const client = mqtt.connect(url, options);
const got = [];
client.on('error', error => { console.error(String(error)); process.exit(1); });
client.on('message', (name, payload) => {
  got.push([name, payload.length]);
  if (got.length == 6) client.end(false, () => console.log(JSON.stringify(got)));
});
client.on('connect', () => client.subscribe(topic, {qos: 2}, () => {
  for (const size of [1, 200, 200000]) for (const qos of [1, 2]) client.publish(topic, 'x'.repeat(size), {qos});
}));
"""


class Program:
    """tserve with every listener, and one user, ann."""

    def __init__(self, running: Running, folder: Path, certificates: Certificates) -> None:
        self.running = running
        self.certificates = certificates
        self.unix = folder / "mqtt.sock"
        self.crl = folder / "crl.pem"

    def port(self, scheme: str) -> int:
        """Where it listens."""
        return int(self.running.wait_for(rf"listening on {scheme}://\S+:(\d+)")[1])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("listeners")
    certificates = Certificates(folder / "certs")
    crl = folder / "crl.pem"
    crl.write_text(build_crl(certificates.authority, []))
    added = run(
        [*command("tuser"), f"-data-dir={folder / 'var'}", "-username=ann", "-password=secret", "-rights=ann/#"]
    )
    assert added.returncode == 0, added.stdout + added.stderr
    flags = ["-addr=", "-addrTls=127.0.0.1:0", "-addrWs=127.0.0.1:0", "-addrWss=127.0.0.1:0", "-addrAdmin=",
             f"-addrUnix={folder / 'mqtt.sock'}", f"-crlfile={crl}", f"-data-dir={folder / 'var'}",
             f"-certs-dir={folder / 'certs'}", "-durability=none"]  # fmt: skip
    with Running([*command("tserve"), *flags]) as running:
        running.wait_for("listening on unix:")
        yield Program(running, folder, certificates)
        assert running.stop() == 0
        assert "Traceback" not in running.output
        assert not (folder / "mqtt.sock").exists()


@pytest.fixture(scope="session")
def mqtt_js() -> Path:
    """The folder that node finds mqtt.js from: beside the packages of the Python that runs the tests, filled once."""
    need("node")
    place = Path(sys.prefix) / "npm" / f"mqtt-{MQTT_JS}"
    if not place.exists():
        npm = need("npm")
        place.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=place.parent))
        try:
            done = subprocess.run(
                [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", f"mqtt@{MQTT_JS}"],
                cwd=fresh, capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
            if done.returncode:
                if os.environ.get("CI"):
                    pytest.fail(f"npm cannot install mqtt.js: {done.stderr}")
                pytest.skip("npm cannot install mqtt.js")
            if not place.exists():
                fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return place


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("version", [4, 5])
def test_mqtt_js(program: Program, mqtt_js: Path, scheme: str, version: int) -> None:
    """What web pages use: small and large messages at QoS 1 and 2, by WebSocket and by secure WebSocket."""
    topic = f"ann/js/{scheme}/{version}"
    url = f"{scheme}://localhost:{program.port(scheme)}/mqtt"
    ca = str(program.certificates.ca) if scheme == "wss" else ""
    done = run([need("node"), "-e", SCRIPT, "--", url, str(version), ca, topic], cwd=mqtt_js)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == sorted([topic, size] for size in (1, 200, 200_000) for _ in range(2))


@pytest.mark.parametrize("version", [MQTTv311, MQTTv5])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_paho_over_websockets(program: Program, version: int, scheme: str) -> None:
    """A thousand messages, in order."""
    one = Paho(f"paho-{scheme}-{version}", version, transport="websockets")
    one.client.ws_set_options("/mqtt")
    if scheme == "wss":
        one.client.tls_set(str(program.certificates.ca))
    assert not one.connect(program.port(scheme), "ann", "secret").is_failure
    topic = f"ann/paho/{scheme}/{version}"
    assert one.subscribe(topic, 1) == [1]
    for number in range(1000):
        one.client.publish(topic, str(number), 1)
    wait_until(lambda: len(one.messages) >= 1000, "messages are missing")
    assert [int(message.payload) for message in one.messages] == list(range(1000))
    one.close()


def test_mosquitto_by_unix_socket(program: Program) -> None:
    """mosquitto_pub leaves a message, mosquitto_sub gets it."""
    login = ["--unix", program.unix, "-u", "ann", "-P", "secret", "-t", "ann/unix"]
    done = run([need("mosquitto_pub"), *login, "-m", "by socket", "-r", "-q", "1"])
    assert (done.returncode, done.stderr) == (0, "")
    done = run([need("mosquitto_sub"), *login, "-C", "1", "-W", "20"])
    assert done.stdout == "by socket\n"


def test_curl_is_told_what_this_is(program: Program) -> None:
    """Plain HTTP, and a page of somebody else's."""
    url = f"http://127.0.0.1:{program.port('ws')}"
    shown = ["-s", "-o", "/dev/null", "-w", "%{http_code}"]
    upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13",
               "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    mqtt = ["-H", "Sec-WebSocket-Protocol: mqtt"]
    for more, status in (
        ([f"{url}/mqtt"], "426"),
        ([f"{url}/nothing"], "404"),
        (["-X", "POST", f"{url}/mqtt"], "405"),
        (["-H", f"X: {'y' * 9000}", f"{url}/mqtt"], "431"),
        ([*upgrade, f"{url}/mqtt"], "400"),
        ([*upgrade, *mqtt, "-H", "Origin: https://evil.example", f"{url}/mqtt"], "403"),
    ):
        done = run([need("curl"), *shown, "--http1.1", *more])
        assert done.stdout == status, more
    done = run([need("curl"), "-s", "-i", "--http1.1", "--max-time", "1", *upgrade, *mqtt, f"{url}/mqtt"])
    assert done.stdout.startswith("HTTP/1.1 101 ")
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in done.stdout


def serial(program: Program, *more: str | Path) -> str:
    """openssl s_client: the serial of the certificate that the broker shows, or what went wrong."""
    done = run([need("openssl"), "s_client", "-connect", f"127.0.0.1:{program.port('mqtts')}", *more], stdin="")
    shown = run([need("openssl"), "x509", "-noout", "-serial"], stdin=done.stdout)
    return shown.stdout.strip() if shown.returncode == 0 else done.stderr


def test_sighup_loads_new_files(program: Program) -> None:
    """A new server certificate and a new list, for handshakes from then on; connections stay."""
    stays = Paho("stays", MQTTv311)
    stays.client.tls_set(str(program.certificates.ca))
    assert not stays.connect(program.port("mqtts"), "ann", "secret").is_failure
    before = serial(program)
    assert re.fullmatch(r"serial=[0-9A-F]+", before)
    identity = program.certificates.client("ann")
    issued = program.certificates.authority
    folder = program.certificates.ca.parent
    for name in ("mqtt.crt", "mqtt.key"):
        (folder / name).unlink()
    Certificates(folder)
    program.crl.write_text(build_crl(issued, [Revoked(identity.serial, datetime.now(UTC))]))
    assert serial(program) == before
    program.running.process.send_signal(signal.SIGHUP)
    program.running.wait_for("loaded the certificates anew")
    after = serial(program)
    assert re.fullmatch(r"serial=[0-9A-F]+", after)
    assert after != before
    flags = ["-connect", f"127.0.0.1:{program.port('mqtts')}", "-cert", identity.path, "-ign_eof"]
    assert run([need("openssl"), "s_client", *flags]).returncode == 1
    assert stays.client.is_connected()
    assert not stays.gone.is_set()
    (folder / "mqtt.crt").write_text("nonsense")
    program.running.process.send_signal(signal.SIGHUP)
    program.running.wait_for("the certificates stay as they were: .*mqtt.crt")
    assert serial(program) == after
    stays.close()


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["-addr=", "-addrTls="], "cannot both be blank"),
     (["-proxyprotocol=mqtt"], "needs -trustproxies"),
     (["-proxyprotocol=tcp", "-trustproxies=::1"], "'tcp' is no listener"),
     (["-trustproxies=10.0.0.1/8"], "no address and no network"),
     (["-unixmode=rw"], "not a file mode"),
     (["-unixmode=4755"], "not a file mode"),
     (["-snicerts=a.crt"], "no pair")],
)  # fmt: skip
def test_settings_that_make_no_sense(flags: list[str], said: str, tmp_path: Path) -> None:
    """They are refused before anything is listened on."""
    done = run([*command("tserve"), *flags, f"-data-dir={tmp_path}", f"-certs-dir={tmp_path}"])
    assert done.returncode == 2
    assert said in done.stderr
