"""CONNECT, the will in it, and CONNACK (sections 3.1 and 3.2).

A CONNECT tells its version itself. When it is refused while it is decoded, the error says in which version the client can be
answered, and `refusal` makes the answer: 5.0 has a reason code for everything, 3.x has a return code for five things, and
anything else is refused by closing the connection without a word [MQTT-3.1.4-1].
"""

from __future__ import annotations

from typing import ClassVar, Final, Self, final

from tstack.mqtt.codes import MQTT5, MQTT31, MQTT311, PacketType, ReasonCode, code_name, reason_code, return_code
from tstack.mqtt.control import (
    ControlPacket,
    check_code,
    check_flags,
    encode_properties,
    frame,
    read_properties,
)
from tstack.mqtt.datatypes import Reader, encode_binary, encode_string, encode_u16
from tstack.mqtt.errors import ClientIdInvalid, MalformedError, MqttError, ProtocolViolation, UnsupportedVersion, shown
from tstack.mqtt.properties import WILL, Properties
from tstack.mqtt.topics import check_topic

MAX_CLIENT_ID_31: Final = 23
"""Characters of a client identifier in MQTT 3.1, which counts from 1; later versions leave the bound to the server."""

_NAMES: Final = {MQTT31: b"MQIsdp", MQTT311: b"MQTT", MQTT5: b"MQTT"}
_RESERVED: Final = 0x01
_CLEAN_START: Final = 0x02
_WILL: Final = 0x04
_WILL_RETAIN: Final = 0x20
_PASSWORD: Final = 0x40
_USERNAME: Final = 0x80
_BRIDGE: Final = 0x80
_CONNECT_KIND: Final = int(PacketType.CONNECT)
_CONNACK_KIND: Final = int(PacketType.CONNACK)


@final
class Will(ControlPacket):
    """The message that the server publishes when the client is gone. Not a packet: it travels in CONNECT."""

    FIELDS: ClassVar[tuple[str, ...]] = ("payload", "properties", "qos", "retain", "topic")
    __slots__ = FIELDS

    def __init__(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, properties: Properties | None = None
    ) -> None:
        self.topic: str = topic
        self.payload: bytes = payload
        self.qos: int = qos
        self.retain: bool = retain
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """The will's part of the CONNECT payload."""
        check_topic(self.topic)
        properties = encode_properties(self.properties, WILL, version)
        return properties + encode_string(self.topic) + encode_binary(self.payload)

    @classmethod
    def read(cls, reader: Reader, flags: int, version: int) -> Self:
        """Read it from a CONNECT with these connect flags [MQTT-3.1.2-9], 5.0 [MQTT-3.1.2-9]."""
        properties = read_properties(reader, WILL, version)
        topic = reader.string()  # [MQTT-3.1.3-10], 5.0 [MQTT-3.1.3-11]
        check_topic(topic)
        return cls(topic, reader.binary(), _will_qos(flags), bool(flags & _WILL_RETAIN), properties)


@final
class Connect(ControlPacket):
    """CONNECT. `keep_alive` is in seconds, 0 for none; `clean_start` is the clean session flag of 3.x.

    `version` is the one that the packet came in; `encode` writes the version it is given. An empty `client_id` asks the server
    for one. Before 5.0 `properties` is empty.
    """

    FIELDS: ClassVar[tuple[str, ...]] = (
        "clean_start",
        "client_id",
        "keep_alive",
        "password",
        "properties",
        "username",
        "version",
        "will",
    )
    __slots__ = FIELDS

    def __init__(
        self,
        client_id: str,
        clean_start: bool = True,
        keep_alive: int = 0,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        properties: Properties | None = None,
        version: int = MQTT311,
    ) -> None:
        self.client_id: str = client_id
        self.clean_start: bool = clean_start
        self.keep_alive: int = keep_alive
        self.username: str | None = username
        self.password: bytes | None = password
        self.will: Will | None = will
        self.properties: Properties = Properties() if properties is None else properties
        self.version: int = version

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`."""
        _check_client_id(self.client_id, self.clean_start, version)
        flags = self._flags()
        _check_connect_flags(flags, version)
        fields = [encode_binary(_NAMES[version]), bytes((version, flags)), encode_u16(self.keep_alive)]
        fields.append(encode_properties(self.properties, _CONNECT_KIND, version))
        fields.append(encode_string(self.client_id))  # in this order [MQTT-3.1.3-1]
        if self.will is not None:
            fields.append(self.will.encode(version))
        if self.username is not None:
            fields.append(encode_string(self.username))
        if self.password is not None:
            fields.append(encode_binary(self.password))
        return frame(_CONNECT_KIND << 4, b"".join(fields))

    def _flags(self) -> int:
        flags = _CLEAN_START if self.clean_start else 0
        if self.will is not None:
            flags |= _WILL | self.will.qos << 3 | (_WILL_RETAIN if self.will.retain else 0)
        if self.username is not None:
            flags |= _USERNAME
        if self.password is not None:
            flags |= _PASSWORD
        return flags

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int = 0) -> Self:
        """Read a CONNECT; `version` is not looked at, the packet says its own.

        Raises `MqttError` with `version` set as soon as it is known: `UnsupportedVersion` for another protocol name or
        level, `ClientIdInvalid` for a client identifier that the version forbids.
        """
        reader = Reader(body)
        level = _read_level(reader)
        try:
            check_flags(_CONNECT_KIND, flags, level)
            return cls._read(reader, level)
        except MqttError as error:
            error.version = level
            raise

    @classmethod
    def _read(cls, reader: Reader, version: int) -> Self:
        flags = reader.u8()
        _check_connect_flags(flags, version)
        keep_alive = reader.u16()
        properties = read_properties(reader, _CONNECT_KIND, version)
        if properties.authentication_data is not None and properties.authentication_method is None:
            raise ProtocolViolation("there is authentication data without an authentication method")
        client_id = reader.string()  # [MQTT-3.1.3-3] [MQTT-3.1.3-4]
        will = Will.read(reader, flags, version) if flags & _WILL else None
        username = password = None
        # In 3.1, and only there, the flags may announce a user name and password that the packet ends without.
        if flags & _USERNAME and (version != MQTT31 or reader.left()):
            username = reader.string()  # [MQTT-3.1.3-11], 5.0 [MQTT-3.1.3-12]
        if flags & _PASSWORD and (version != MQTT31 or reader.left()):
            password = reader.binary()
        reader.done()
        clean_start = bool(flags & _CLEAN_START)
        _check_client_id(client_id, clean_start, version)
        return cls(client_id, clean_start, keep_alive, username, password, will, properties, version)


def _will_qos(flags: int) -> int:
    return flags >> 3 & 3


def _read_level(reader: Reader) -> int:
    """Protocol name and level [MQTT-3.1.2-1] [MQTT-3.1.2-2]: one of the three versions, else `UnsupportedVersion`."""
    name = reader.binary()
    if name not in (b"MQTT", b"MQIsdp"):
        raise UnsupportedVersion("the protocol name is neither MQTT nor MQIsdp", -1)
    level = reader.u8()
    if level in _NAMES and _NAMES[level] == name:
        return level
    error = UnsupportedVersion(f"there is no protocol {name.decode()} with level {level}", level)
    # The answer has the form that the client can read. Bridges of old set the top bit of a 3.x level.
    error.version = MQTT5 if MQTT5 < level < _BRIDGE else MQTT311
    raise error


def _check_connect_flags(flags: int, version: int) -> None:
    if flags & _RESERVED and version != MQTT31:
        raise MalformedError("the reserved connect flag is set")  # [MQTT-3.1.2-3]
    if not flags & _WILL:
        if flags & (_WILL_RETAIN | 0x18):  # [MQTT-3.1.2-11] [-13] [-15], 5.0 [MQTT-3.1.2-11] [-13]
            raise MalformedError("the connect flags have a will QoS or will retain, and no will")
    elif _will_qos(flags) == 3:
        raise MalformedError("the will QoS is 3")  # [MQTT-3.1.2-14], 5.0 [MQTT-3.1.2-12]
    if flags & _PASSWORD and not flags & _USERNAME and version != MQTT5:
        raise ProtocolViolation("there is a password without a user name")  # [MQTT-3.1.2-22] of 3.1.1; 5.0 allows it


def _check_client_id(client_id: str, clean_start: bool, version: int) -> None:
    if version == MQTT31 and not 1 <= len(client_id) <= MAX_CLIENT_ID_31:
        raise ClientIdInvalid(f"client identifier {shown(client_id)} has not 1 to {MAX_CLIENT_ID_31} characters")
    if version == MQTT311 and not client_id and not clean_start:  # [MQTT-3.1.3-7] [MQTT-3.1.3-8] of 3.1.1
        raise ClientIdInvalid("an empty client identifier needs clean session")


@final
class ConnAck(ControlPacket):
    """CONNACK. In 3.x the reason code travels as one of six return codes; encoding any other raises `ProtocolViolation`."""

    FIELDS: ClassVar[tuple[str, ...]] = ("properties", "reason_code", "session_present")
    __slots__ = FIELDS

    def __init__(
        self, session_present: bool, reason_code: int = ReasonCode.SUCCESS, properties: Properties | None = None
    ) -> None:
        self.session_present: bool = session_present
        self.reason_code: int = int(reason_code)
        self.properties: Properties = Properties() if properties is None else properties

    def encode(self, version: int) -> bytes:
        """See `ControlPacket.encode`. A refusal has no session [MQTT-3.2.2-4], 5.0 [MQTT-3.2.2-6]."""
        if self.session_present and self.reason_code:
            raise ProtocolViolation("a CONNACK that refuses says that the session is present")
        code = _connack_code(self.reason_code, version)
        # 3.1 has no session present flag; the bit is reserved there.
        present = self.session_present and version != MQTT31
        body = bytes((present, code)) + encode_properties(self.properties, _CONNACK_KIND, version)
        return frame(_CONNACK_KIND << 4, body)

    @classmethod
    def decode(cls, flags: int, body: bytes, version: int) -> Self:
        """Read a CONNACK. Raises `MqttError`."""
        check_flags(_CONNACK_KIND, flags, version)
        reader = Reader(body)
        acknowledge = reader.u8()
        if version == MQTT31:
            acknowledge = 0  # not used there, nor judged
        elif acknowledge > 1:
            raise MalformedError("a reserved acknowledge flag is set")  # 5.0 [MQTT-3.2.2-1]
        code = _read_connack_code(reader.u8(), version)
        if acknowledge and code:
            raise ProtocolViolation("a CONNACK that refuses says that the session is present")
        properties = read_properties(reader, _CONNACK_KIND, version)
        reader.done()
        return cls(bool(acknowledge), code, properties)


def _connack_code(reason: int, version: int) -> int:
    if version == MQTT5:
        return check_code(_CONNACK_KIND, reason)
    code = return_code(reason)
    if code is None:  # [MQTT-3.2.2-6] of 3.1.1: then there is no CONNACK at all
        raise ProtocolViolation(f"3.x has no return code for {code_name(reason)}")
    return code


def _read_connack_code(code: int, version: int) -> int:
    if version == MQTT5:
        return check_code(_CONNACK_KIND, code)
    reason = reason_code(code)
    if reason is None:
        raise ProtocolViolation(f"the return code {code} is reserved")
    return reason


def refusal(error: MqttError) -> bytes:
    """The CONNACK for a CONNECT whose decoding raised `error`; nothing when it is refused by closing the connection alone.

    3.x: [MQTT-3.1.2-2], [MQTT-3.1.3-9], else [MQTT-3.1.4-1] and [MQTT-3.2.2-6]. 5.0: the reason code (section 4.13.1).
    """
    if error.version == 0 or (error.version != MQTT5 and return_code(error.code) is None):
        return b""
    return ConnAck(False, error.code).encode(error.version)
