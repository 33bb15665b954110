"""The normative statements of both versions by their number, each with a few words of ours; the standards have the text.

A line is `number words`, then perhaps ` @ ` and why no test of the broker can prove it: `client` where it binds clients only,
else a reason. 3.1.1 numbers some of section 4 with a dot; they have a hyphen here, as the others do.
"""

from __future__ import annotations

from typing import NamedTuple


class Statement(NamedTuple):
    """One statement; `reason` says why there is nothing to prove, "" where a proof is needed."""

    version: str
    number: str
    words: str
    reason: str


CLIENT = "binds clients only"

MQTT5 = """\
1.5.4-1 strings are well-formed UTF-8
1.5.4-2 no U+0000 in strings
1.5.4-3 U+FEFF is kept
1.5.5-1 variable byte integers in the fewest bytes
1.5.7-1 both halves of a pair are UTF-8
2.1.3-1 reserved flags have their value
2.2.1-2 no identifier at QoS 0
2.2.1-3 clients choose unused identifiers, not 0
2.2.1-4 the server chooses unused identifiers, not 0
2.2.1-5 acknowledgements have the PUBLISH's identifier
2.2.1-6 SUBACK and UNSUBACK have the request's identifier
2.2.2-1 no properties: length 0
3.1.0-1 CONNECT comes first
3.1.0-2 a second CONNECT is an error
3.1.2-1 protocol name
3.1.2-2 unknown versions are refused
3.1.2-3 reserved connect flag
3.1.2-4 clean start discards the session
3.1.2-5 without clean start the session goes on
3.1.2-6 or a new one begins
3.1.2-7 a will is stored
3.1.2-8 and published when it is due
3.1.2-9 its fields are there
3.1.2-10 and it is removed after that
3.1.2-11 no will: will QoS 0
3.1.2-12 will QoS 0 to 2
3.1.2-13 no will: no will retain
3.1.2-14 will not retained
3.1.2-15 will retained
3.1.2-16 no user name without its flag
3.1.2-17 user name with its flag
3.1.2-18 no password without its flag
3.1.2-19 password with its flag
3.1.2-20 clients ping in time @ client
3.1.2-21 clients follow the server keep alive @ client
3.1.2-22 silence beyond 1.5 times keep alive ends the connection
3.1.2-23 state is stored while the session lasts
3.1.2-24 no packet above the client's maximum size
3.1.2-25 one that is too large counts as delivered
3.1.2-26 no alias above the client's maximum
3.1.2-27 no alias without a maximum
3.1.2-28 no response information unless asked for
3.1.2-29 no reason strings where they are not wanted
3.1.2-30 only AUTH and DISCONNECT before CONNACK
3.1.3-1 order of the payload fields
3.1.3-2 the client identifier names the session
3.1.3-3 it comes first
3.1.3-4 it is UTF-8
3.1.3-5 1 to 23 letters and digits are allowed
3.1.3-6 an empty one is replaced by a unique one
3.1.3-7 which the CONNACK tells
3.1.3-8 a rejected one: 0x85 and close @ the broker refuses no client identifier that is a string
3.1.3-9 no will when the client is back in time
3.1.3-10 order of a will's user properties
3.1.3-11 will topic is UTF-8
3.1.3-12 user name is UTF-8
3.1.4-1 CONNECT is validated
3.1.4-2 further checks that fail close
3.1.4-3 takeover: 0x8E to the old connection
3.1.4-4 clean start is processed
3.1.4-5 CONNACK 0x00
3.1.4-6 nothing is processed behind a rejected CONNECT
3.2.0-1 CONNACK comes first
3.2.0-2 one CONNACK only
3.2.2-1 reserved acknowledge flags
3.2.2-2 clean start: no session present
3.2.2-3 session present as it is
3.2.2-4 session present where the client has none @ client
3.2.2-5 no session present where the client has one @ client
3.2.2-6 refusal: no session present
3.2.2-7 refusal: close
3.2.2-8 codes of CONNACK
3.2.2-9 maximum QoS of a lesser server @ the broker supports QoS 2
3.2.2-10 subscriptions at a lesser server @ the broker supports QoS 2
3.2.2-11 clients keep to the maximum QoS @ client
3.2.2-12 will QoS at a lesser server @ the broker supports QoS 2
3.2.2-13 retained wills where retaining is off @ the broker retains
3.2.2-14 clients keep to retain available @ client
3.2.2-15 clients keep to the maximum packet size @ client
3.2.2-16 the assigned client identifier is new
3.2.2-17 clients keep to the topic alias maximum
3.2.2-18 no aliases from clients without a maximum @ client
3.2.2-19 reason string only where it fits
3.2.2-20 user properties only where they fit @ the broker adds none
3.2.2-21 clients follow the server keep alive @ client
3.2.2-22 else the client's keep alive holds
3.3.1-1 DUP when sent again
3.3.1-2 no DUP at QoS 0
3.3.1-3 DUP does not travel
3.3.1-4 no QoS 3
3.3.1-5 RETAIN replaces the retained message
3.3.1-6 an empty one removes it
3.3.1-7 and is not kept
3.3.1-8 without RETAIN it stays
3.3.1-9 retain handling 0
3.3.1-10 retain handling 1
3.3.1-11 retain handling 2
3.3.1-12 retain as published off
3.3.1-13 retain as published on
3.3.2-1 topic name first, UTF-8
3.3.2-2 no wildcards in topic names
3.3.2-3 topic matches the subscription
3.3.2-4 payload format indicator unaltered
3.3.2-5 what is expired is not delivered
3.3.2-6 expiry counts down
3.3.2-7 aliases end with the connection
3.3.2-8 no alias 0
3.3.2-9 client aliases within the server's maximum
3.3.2-10 client accepts aliases within its maximum @ client
3.3.2-11 server aliases within the client's maximum
3.3.2-12 every alias within the maximum is accepted
3.3.2-13 response topic is UTF-8
3.3.2-14 without wildcards
3.3.2-15 unaltered
3.3.2-16 correlation data unaltered
3.3.2-17 user properties unaltered
3.3.2-18 in their order
3.3.2-19 content type is UTF-8
3.3.2-20 unaltered
3.3.4-1 answer by QoS
3.3.4-2 overlapping: the greatest QoS
3.3.4-3 overlapping: subscription identifiers
3.3.4-4 all of them in a single copy
3.3.4-5 one in each of several copies @ the broker sends a single copy
3.3.4-6 no subscription identifier from clients
3.3.4-7 clients keep to the receive maximum
3.3.4-8 clients delay nothing else @ client
3.3.4-9 the server keeps to the receive maximum
3.3.4-10 and delays nothing else
3.4.2-1 codes of PUBACK
3.4.2-2 reason string only where it fits
3.4.2-3 user properties only where they fit @ the broker adds none
3.5.2-1 codes of PUBREC
3.5.2-2 reason string only where it fits
3.5.2-3 user properties only where they fit @ the broker adds none
3.6.1-1 flags of PUBREL
3.6.2-1 codes of PUBREL
3.6.2-2 reason string only where it fits @ the broker adds none
3.6.2-3 user properties only where they fit @ the broker adds none
3.7.2-1 codes of PUBCOMP
3.7.2-2 reason string only where it fits @ the broker adds none
3.7.2-3 user properties only where they fit @ the broker adds none
3.8.1-1 flags of SUBSCRIBE
3.8.3-1 filters are UTF-8
3.8.3-2 at least one filter
3.8.3-3 no local
3.8.3-4 no local on a shared subscription
3.8.3-5 reserved options
3.8.4-1 SUBACK answers
3.8.4-2 with the same identifier
3.8.4-3 the same filter replaces
3.8.4-4 retained messages again, nothing lost
3.8.4-5 several filters, one answer
3.8.4-6 a code for each
3.8.4-7 granted QoS or failure
3.8.4-8 the lower QoS of the two
3.9.2-1 reason string only where it fits
3.9.2-2 user properties only where they fit @ the broker adds none
3.9.3-1 codes in order
3.9.3-2 codes of SUBACK
3.10.1-1 flags of UNSUBSCRIBE
3.10.3-1 filters are UTF-8
3.10.3-2 at least one filter
3.10.4-1 compared character by character
3.10.4-2 nothing new after that
3.10.4-3 what has begun is finished
3.10.4-4 UNSUBACK answers
3.10.4-5 with the same identifier, always
3.10.4-6 several filters, one answer
3.11.2-1 reason string only where it fits @ the broker adds none
3.11.2-2 user properties only where they fit @ the broker adds none
3.11.3-1 codes in order
3.11.3-2 codes of UNSUBACK
3.12.4-1 PINGRESP
3.14.0-1 no DISCONNECT before CONNACK
3.14.1-1 flags of DISCONNECT
3.14.2-1 codes of DISCONNECT
3.14.2-2 no session expiry from the server
3.14.2-3 reason string only where it fits
3.14.2-4 user properties only where they fit @ the broker adds none
3.14.4-1 nothing after DISCONNECT
3.14.4-2 close after DISCONNECT
3.14.4-3 0x00 discards the will
3.15.1-1 flags of AUTH
3.15.2-1 codes of AUTH
3.15.2-2 reason string only where it fits @ the broker adds none
3.15.2-3 user properties only where they fit @ the broker adds none
4.1.0-1 state lasts while connected
4.1.0-2 and ends after its expiry
4.2-1 an ordered, lossless transport
4.3.1-1 QoS 0 out
4.3.2-1 QoS 1 out: new identifier
4.3.2-2 QoS 1 out: no DUP
4.3.2-3 QoS 1 out: until PUBACK
4.3.2-4 QoS 1 in: PUBACK
4.3.2-5 QoS 1 in: new after PUBACK
4.3.3-1 QoS 2 out: new identifier
4.3.3-2 QoS 2 out: no DUP
4.3.3-3 QoS 2 out: until PUBREC
4.3.3-4 QoS 2 out: PUBREL
4.3.3-5 QoS 2 out: until PUBCOMP
4.3.3-6 QoS 2 out: no PUBLISH after PUBREL
4.3.3-7 QoS 2 out: no expiry once sent
4.3.3-8 QoS 2 in: PUBREC
4.3.3-9 QoS 2 in: new after a PUBREC that refuses
4.3.3-10 QoS 2 in: routed once
4.3.3-11 QoS 2 in: PUBCOMP
4.3.3-12 QoS 2 in: new after PUBCOMP
4.3.3-13 QoS 2: the flow ends as usual after expiry
4.4.0-1 sent again at a new connection, and only then
4.4.0-2 a refusal acknowledges
4.5.0-1 into the session of every match
4.5.0-2 clients acknowledge what they do not want @ client
4.6.0-1 sent again in order
4.6.0-2 PUBACK in order @ client
4.6.0-3 PUBREC in order @ client
4.6.0-4 PUBREL in order @ client
4.6.0-5 order of one publisher
4.6.0-6 every topic is ordered
4.7.0-1 no wildcards in topic names
4.7.1-1 place of #
4.7.1-2 place of +
4.7.2-1 wildcards do not reach $-topics
4.7.3-1 at least one character
4.7.3-2 no U+0000
4.7.3-3 65 535 bytes at most
4.7.3-4 nothing is normalised
4.8.2-1 $share/ and a name
4.8.2-2 what a share name is
4.8.2-3 the granted QoS holds
4.8.2-4 QoS 2 is completed with the member that has begun
4.8.2-5 and with no other
4.8.2-6 what a member refuses is discarded
4.9.0-1 quota within the receive maximum
4.9.0-2 quota 0: nothing more at QoS 1 and 2
4.9.0-3 everything else goes on
4.12.0-1 unknown method: 0x8C and close
4.12.0-2 AUTH from the server: 0x18
4.12.0-3 AUTH from the client: 0x18
4.12.0-4 rejected at any point: close
4.12.0-5 the method in every AUTH and in CONNACK
4.12.0-6 no AUTH and no method without one in CONNECT
4.12.0-7 no AUTH from such a client
4.12.1-1 re-authentication by the same method
4.12.1-2 failure closes
4.13.1-1 errors close
4.13.2-1 codes from 0x80 close
6.0.0-1 WebSocket: binary frames
6.0.0-2 WebSocket: frames are no packets
6.0.0-3 WebSocket: clients offer mqtt @ client
6.0.0-4 WebSocket: the server answers mqtt
"""

MQTT311 = """\
1.5.3-1 strings are well-formed UTF-8
1.5.3-2 no U+0000 in strings
1.5.3-3 U+FEFF is kept
2.2.2-1 reserved flags have their value
2.2.2-2 else close
2.3.1-1 identifiers are not 0
2.3.1-2 clients choose unused ones @ client
2.3.1-3 the same one when sent again
2.3.1-4 the server does the same
2.3.1-5 none at QoS 0
2.3.1-6 acknowledgements have the PUBLISH's
2.3.1-7 SUBACK and UNSUBACK have the request's
3.1.0-1 CONNECT comes first
3.1.0-2 a second CONNECT closes
3.1.2-1 protocol name
3.1.2-2 unknown level: 0x01 and close
3.1.2-3 reserved connect flag
3.1.2-4 without clean session the session goes on
3.1.2-5 QoS 1 and 2 wait for it
3.1.2-6 clean session discards
3.1.2-7 retained messages stay
3.1.2-8 a will is stored and published
3.1.2-9 its fields are there
3.1.2-10 and it is removed after that
3.1.2-11 no will: no flags and fields of one
3.1.2-12 no will: nothing published
3.1.2-13 no will: will QoS 0
3.1.2-14 will QoS 0 to 2
3.1.2-15 no will: no will retain
3.1.2-16 will not retained
3.1.2-17 will retained
3.1.2-18 no user name without its flag
3.1.2-19 user name with its flag
3.1.2-20 no password without its flag
3.1.2-21 password with its flag
3.1.2-22 no password without a user name
3.1.2-23 clients ping in time @ client
3.1.2-24 silence beyond 1.5 times keep alive ends the connection
3.1.3-1 order of the payload fields
3.1.3-2 the client identifier names the session
3.1.3-3 it comes first
3.1.3-4 it is UTF-8
3.1.3-5 1 to 23 letters and digits are allowed
3.1.3-6 an empty one is replaced by a unique one
3.1.3-7 which needs clean session
3.1.3-8 else 0x02 and close
3.1.3-9 a rejected one: 0x02 and close
3.1.3-10 will topic is UTF-8
3.1.3-11 user name is UTF-8
3.1.4-1 CONNECT is validated
3.1.4-2 takeover closes the old connection
3.1.4-3 clean session is processed
3.1.4-4 CONNACK 0
3.1.4-5 nothing is processed behind a rejected CONNECT
3.2.0-1 CONNACK comes first
3.2.2-1 clean session: no session present
3.2.2-2 session present where there is one
3.2.2-3 and not where there is none
3.2.2-4 refusal: no session present
3.2.2-5 refusal: close
3.2.2-6 no return code fits: close without CONNACK
3.3.1-1 DUP when sent again
3.3.1-2 no DUP at QoS 0
3.3.1-3 DUP does not travel
3.3.1-4 no QoS 3
3.3.1-5 RETAIN stores message and QoS
3.3.1-6 a new subscription gets it
3.3.1-7 also at QoS 0
3.3.1-8 with RETAIN
3.3.1-9 RETAIN 0 to subscriptions that are there
3.3.1-10 an empty one removes it
3.3.1-11 and is not kept
3.3.1-12 without RETAIN it stays
3.3.2-1 topic name first, UTF-8
3.3.2-2 no wildcards in topic names
3.3.2-3 topic matches the subscription
3.3.4-1 answer by QoS
3.3.5-1 overlapping: the greatest QoS
3.3.5-2 not allowed: acknowledge or close
3.6.1-1 flags of PUBREL
3.8.1-1 flags of SUBSCRIBE
3.8.3-1 filters are UTF-8
3.8.3-2 wildcards that are not supported @ the broker supports them
3.8.3-3 at least one filter
3.8.3-4 reserved bits and QoS 3
3.8.4-1 SUBACK answers
3.8.4-2 with the same identifier
3.8.4-3 the same filter replaces
3.8.4-4 several filters, one answer
3.8.4-5 a code for each
3.8.4-6 the lower QoS of the two
3.9.3-1 codes in order
3.9.3-2 codes of SUBACK
3.10.1-1 flags of UNSUBSCRIBE
3.10.3-1 filters are UTF-8
3.10.3-2 at least one filter
3.10.4-1 compared byte by byte
3.10.4-2 nothing new after that
3.10.4-3 what has begun is finished
3.10.4-4 UNSUBACK answers
3.10.4-5 always
3.10.4-6 several filters, one answer
3.12.4-1 PINGRESP
3.14.1-1 flags of DISCONNECT
3.14.4-1 client closes after DISCONNECT @ client
3.14.4-2 client sends nothing more @ client
3.14.4-3 DISCONNECT discards the will
4.1.0-1 state is stored while the session lasts
4.1.0-2 which is at least while connected
4.3.1-1 QoS 0 out
4.3.2-1 QoS 1 out
4.3.2-2 QoS 1 in
4.3.3-1 QoS 2 out
4.3.3-2 QoS 2 in
4.4.0-1 sent again at a new connection
4.5.0-1 into the session of every match
4.5.0-2 clients acknowledge what they do not want @ client
4.6.0-1 sent again in order
4.6.0-2 PUBACK in order @ client
4.6.0-3 PUBREC in order @ client
4.6.0-4 PUBREL in order @ client
4.6.0-5 every topic is ordered
4.6.0-6 order of one publisher
4.7.1-1 no wildcards in topic names
4.7.1-2 place of #
4.7.1-3 place of +
4.7.2-1 wildcards do not reach $-topics
4.7.3-1 at least one character
4.7.3-2 no U+0000
4.7.3-3 65 535 bytes at most
4.7.3-4 nothing is normalised
4.8.0-1 protocol violations close
4.8.0-2 transient errors close
6.0.0-1 WebSocket: binary frames
6.0.0-2 WebSocket: frames are no packets
6.0.0-3 WebSocket: clients offer mqtt @ client
6.0.0-4 WebSocket: the server answers mqtt
7.0.0-1 a server that is a client too @ the broker opens no MQTT connections
7.0.0-2 no extensions are required
7.1.1-1 an ordered, lossless transport
7.1.2-1 the same for clients @ client
"""


def _parse(version: str, lines: str) -> list[Statement]:
    found = []
    for line in lines.splitlines():
        text, _, reason = line.partition(" @ ")
        number, _, words = text.partition(" ")
        found.append(Statement(version, number, words, CLIENT if reason == "client" else reason))
    return found


STATEMENTS = [*_parse("5.0", MQTT5), *_parse("3.1.1", MQTT311)]
