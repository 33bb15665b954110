"""How a CONNECT that is refused is answered: in the words of the client's own version, or not at all."""

from __future__ import annotations

import pytest

from tests.mqtt.cases import BAD, Bad
from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311
from tstack.mqtt.errors import MqttError, UnsupportedVersion
from tstack.mqtt.framing import decode
from tstack.mqtt.packets import Connect, refusal

_END = b"\x02\x00\x00\x00\x01c"


def _refused(data: bytes) -> MqttError:
    with pytest.raises(MqttError) as caught:
        decode(data, 0, 0)
    return caught.value


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        # another protocol: no CONNACK of any form, 3.1.1 [MQTT-3.1.2-1]
        (b"\x10\x0d\x00\x04HTTP\x04" + _END, b""),
        (b"\x10\x0d\x00\x04mqtt\x04" + _END, b""),
        # a version that there is not: 3.1.1 [MQTT-3.1.2-2], 5.0 [MQTT-3.1.2-2]
        (b"\x10\x0d\x00\x04MQTT\x00" + _END, b"\x20\x02\x00\x01"),
        (b"\x10\x0d\x00\x04MQTT\x03" + _END, b"\x20\x02\x00\x01"),
        (b"\x10\x0f\x00\x06MQIsdp\x04" + _END, b"\x20\x02\x00\x01"),
        (b"\x10\x0d\x00\x04MQTT\x84" + _END, b"\x20\x02\x00\x01"),
        (b"\x10\x0d\x00\x04MQTT\x80" + _END, b"\x20\x02\x00\x01"),
        (b"\x10\x0d\x00\x04MQTT\x06" + _END, b"\x20\x03\x00\x84\x00"),
        (b"\x10\x0d\x00\x04MQTT\x7f" + _END, b"\x20\x03\x00\x84\x00"),
        # identifier rejected: 3.1.1 [MQTT-3.1.3-8] [MQTT-3.1.3-9]
        (b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00", b"\x20\x02\x00\x02"),
        (b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00", b"\x20\x02\x00\x02"),
        # 3.x closes without a word where no return code says it: 3.1.1 [MQTT-3.1.4-1] [MQTT-3.2.2-6]
        (b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01c", b""),
        (b"\x10\x10\x00\x04MQTT\x04\x42\x00\x00\x00\x01c\x00\x01p", b""),
        # 5.0 says it
        (b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01c", b"\x20\x03\x00\x81\x00"),
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x00\x03\x21\x00\x00\x00\x01c", b"\x20\x03\x00\x82\x00"),
        (b"\x10\x14\x00\x04MQTT\x05\x06\x00\x00\x00\x00\x01c\x00\x00\x01#\x00\x00", b"\x20\x03\x00\x90\x00"),
    ],
)
def test_the_answer_to_a_connect_that_is_refused(data: bytes, answer: bytes) -> None:
    assert refusal(_refused(data)) == answer


def test_the_level_asked_for_is_told() -> None:
    error = _refused(b"\x10\x0d\x00\x04MQTT\x09" + _END)
    assert isinstance(error, UnsupportedVersion)
    assert error.level == 9
    other = _refused(b"\x10\x0d\x00\x04HTTP\x04" + _END)
    assert isinstance(other, UnsupportedVersion)
    assert other.level == -1


@pytest.mark.parametrize("case", [case for case in BAD if case.data[:1] == b"\x10"], ids=lambda case: case.name)
def test_every_refusal_is_a_connack_or_silence(case: Bad) -> None:
    """Whatever the fault, making the answer does not fail."""
    answer = refusal(_refused(case.data))
    assert answer[:1] in (b"", b"\x20")


def test_version_is_the_one_on_the_wire() -> None:
    for version in (MQTT31, MQTT311, MQTT5):
        found = decode(Connect("c").encode(version), 0, 0)
        assert found is not None
        packet = found[0]
        assert isinstance(packet, Connect)
        assert packet.version == version
