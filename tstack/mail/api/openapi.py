"""The HTTP API as an OpenAPI 3.1 document, written by hand; tests hold it to the routes and to the real answers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tstack import __version__
from tstack.mail.api.problems import PROBLEM
from tstack.mail.api.requests import HIDDEN, MAX_PAGE
from tstack.mail.providers import SETTINGS, SMTP
from tstack.mail.records import FORMATS, KINDS, MAX_RAW, TLS

Json = dict[str, Any]

_STATUS: Final = {
    400: "The request is not what it should be; `detail` says what, `hint` what to send.",
    401: "There is no such API key.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "What is there already stands in the way.",
    413: "The body is too large.",
    415: "The body is not called JSON.",
    429: "Too many requests: wait as long as `Retry-After` says.",
    503: "Not possible at the moment: try again after `Retry-After`.",
}
_ANY: Final = (400, 401, 404, 429, 503)
_BODY: Final = (408, 413, 415)

BYTES: Final = "application/octet-stream"
"""An answer that is no JSON."""

_SECRET: Final = f"Written, never shown: it reads as `{HIDDEN}`, and to write that changes nothing."


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def _maybe(description: str, **more: Any) -> Json:
    return {"type": ["string", "null"], "description": description, **more}


def _flag(description: str) -> Json:
    return {"type": "boolean", "description": description}


def _number(description: str, most: int) -> Json:
    return {"type": "integer", "minimum": 0, "maximum": most, "description": description}


def _texts(description: str) -> Json:
    return {"type": "array", "items": {"type": "string", "maxLength": 1000}, "maxItems": 20, "description": description}


def _record(description: str, properties: Json, required: Sequence[str] | None = None) -> Json:
    """An object with these fields and no others; `required`: all when None."""
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "required": list(properties if required is None else required),
    }  # fmt: skip


_PLACE: Final[Json] = {
    "imap_host": _text("The IMAP server; blank: that which the kind is known for.", maxLength=1000),
    "imap_port": _number("Its port; 0: 993 with implicit TLS, else 143.", 65535),
    "imap_tls": _text("How it is encrypted; `none` is for the machine itself only.", enum=list(TLS)),
}
_SMTP: Final[Json] = {
    "smtp_host": _text(SMTP["smtp_host"], maxLength=1000), "smtp_port": _number(SMTP["smtp_port"], 65535),
    "smtp_enable_starttls_auto": _flag(SMTP["smtp_enable_starttls_auto"]),
    "smtp_domain": _text(SMTP["smtp_domain"], maxLength=255),
}  # fmt: skip
_OAUTH: Final[Json] = {name: _text(text, maxLength=1000) for name, text in SETTINGS.items()}
_TIMES: Final[Json] = {"created_at": _text("When it was made."), "updated_at": _text("When it was changed last.")}
_CODE: Final = _text("The provider: one that is known, or a code of your own.", pattern="^[A-Za-z0-9_-]{1,64}$")
_KIND: Final = _text("How one logs in there.", enum=list(KINDS))

_NOT_ASKED: Final[Json] = {
    "type": "array", "items": {"type": "string"},
    "description": "Watchers that could not be asked: what they have is missing here. Try again later.",
}  # fmt: skip

_NEW_CONNECTION: Final[Json] = {
    "imap_provider_code": _CODE, "kind": _KIND, **_PLACE, **_SMTP, **_OAUTH,
    "oauth2_client_secret": _maybe(_SECRET, maxLength=1000),
}  # fmt: skip

_USER_SETTINGS: Final[Json] = {
    "email": _maybe("The mail address.", maxLength=320),
    "archived": _flag("Is it kept, and not watched? False restores it."),
    "enable_tracer": _flag("Are probes sent to it, and followed?"),
    "folders": _texts("Folders to watch, the first one without delay; none: the inbox."),
    "raw_limit": _number("Mails up to so many bytes are published whole; 0: none.", MAX_RAW),
    "keep_limit": _number(
        "Of mails up to so many bytes the text is told, and the whole kept to be fetched; 0: none.", MAX_RAW
    ),
}
_CREDENTIALS: Final[Json] = {
    "login_username": _maybe("PLAIN: the name to log in with; null: the address.", maxLength=320),
    "login_password": _maybe(f"PLAIN: the password. {_SECRET}", maxLength=1000),
    "oauth2_refresh_token": _maybe(f"OAuth: the refresh token. {_SECRET}", maxLength=2900),
}
_STANDING: Final = ("connect_url", "disconnect_url", "connected_at", "parked_at", "parked_reason", "held")
_TAG: Final = _text("The partner's name for the mailbox.", minLength=1, maxLength=200)

_PARTNER: Final[Json] = {
    "success_url": _text("Where a user is led who connected or disconnected a mailbox.", maxLength=1000),
    "failure_url": _text("Where a user is led when that failed; with `error` in the query.", maxLength=1000),
    "new_mail_webhook": _text("Is told of new mail; blank: nobody.", maxLength=1000),
    "user_connected_webhook": _text("Is told of mailboxes that were connected.", maxLength=1000),
    "user_disconnected_webhook": _text("Is told of mailboxes that were disconnected.", maxLength=1000),
    "redirect_hosts": _texts("Hosts that links may lead back to, beside those of the two URLs."),
    "format": _text("Of the events.", enum=list(FORMATS)),
}

_SCHEMAS: Final[Json] = {
    "Problem": _record(
        "What went wrong (RFC 9457).",
        {
            "type": _text("A URI of the kind of problem."), "title": _text("The status in words."),
            "status": {"type": "integer", "description": "The status."}, "detail": _text("What was wrong."),
            "hint": _text("What to do about it."),
        },
        ("type", "title", "status", "detail"),
    ),
    "Partner": _record(
        "The partner who asks.",
        {
            "name": _text("A user of the broker, under whose name the events are."), **_PARTNER,
            "api_keys": _number("How many API keys are good.", 2), **_TIMES,
        },
    ),
    "PartnerChange": _record("Fields to be changed.", _PARTNER, ()),
    "ApiKey": _record("A new API key.", {"api_key": _text("Shown this once.")}),
    "ConnectionEntry": _record(
        "A connection, in short.",
        {"imap_provider_code": _CODE, "users_count": _number("Users, archived ones too.", 2**53), "kind": _KIND},
    ),
    "NewConnection": _record("A connection to be made.", _NEW_CONNECTION, ("imap_provider_code",)),
    "ConnectionChange": _record("Fields to be changed.", _NEW_CONNECTION, ()),
    "Connection": _record(
        "A mail provider as one partner uses it.",
        {
            "imap_provider_code": _CODE, "users_count": _number("Users, archived ones too.", 2**53), "kind": _KIND,
            "title": _text("The kind in words."), **_PLACE, **_SMTP, **_OAUTH, "oauth2_client_secret": _maybe(_SECRET),
            **_TIMES,
        },
        ("imap_provider_code", "users_count", "kind", "title", *_PLACE, *_SMTP, *_TIMES),
    ),
    "UserEntry": _record(
        "A user, in short.",
        {
            "tag": _TAG, "email": _maybe("The mail address."), "connected_at": _maybe("As in User."),
            "archived": _flag("Is it kept, and not watched?"),
        },
    ),
    "NewUser": _record("A user to be made.", {"tag": _TAG, **_USER_SETTINGS, **_CREDENTIALS}, ("tag",)),
    "UserChange": _record("Fields to be changed.", {"tag": _TAG, **_USER_SETTINGS, **_CREDENTIALS}, ()),
    "User": _record(
        "One mailbox.",
        {
            "tag": _TAG, **_USER_SETTINGS, **_CREDENTIALS,
            "connect_url": _text("Send the mailbox's owner there to connect it; good for half an hour."),
            "disconnect_url": _text("The same, to take it back."),
            "connected_at": _maybe("When it was given the credentials that it has; null: it has none."),
            "parked_at": _maybe("Since when nobody logs in; null: it is not parked."),
            "parked_reason": _maybe("Why."), "held": _flag("Is it parked until somebody unparks it?"), **_TIMES,
        },
        ("tag", *_USER_SETTINGS, *_STANDING, *_TIMES),
    ),
    "Parking": _record("Why it is parked.", {"reason": _text("For people.", maxLength=500)}, ()),
    "Since": _record("From when on.", {"since": _text("A day or a time; absent: from the beginning.", maxLength=40)}, ()),
    "Replay": _record("What is under way.", {"tag": _TAG, "since": _maybe("From when on.")}),
    "State": _record(
        "How a mailbox is right now.",
        {
            "tag": _TAG,
            "state": _text(
                "What it is doing.",
                enum=[
                    "archived", "disconnected", "parked", "unknown", "connecting", "connected", "auth_failed", "throttled",
                    "unavailable", "tls", "stopped",
                ],
            ),
            "reason": _text("Why."),
            "next_try_seconds": {"type": ["number", "null"], "description": "Seconds until the next try; null: none is due."},
        },
    ),
    "DeadLetter": _record(
        "What could not be delivered, and waits for somebody to look at it.",
        {
            "id": _text("Its name."), "way": _text("How it was to be delivered.", enum=["mqtt", "webhook"]),
            "imap_provider_code": _CODE, "tag": _TAG, "topic": _text("Where to: the topic, or the webhook's kind."),
            "source": _text("The event's source."), "event_id": _text("The event's id, unique with its source."),
            "size": _number("Bytes.", 2**53), "attempts": _number("How often it was tried.", 2**31),
            "created_at": _text("When it was found."), "dead_since": _text("When it was given up."),
            "reason": _text("Why."),
        },
    ),
    "DeadLetters": _record(
        "A page of them.",
        {"dead_letters": {"type": "array", "items": {"$ref": "#/components/schemas/DeadLetter"},
                          "description": "In the order of their ids."},
         "not_asked": _NOT_ASKED},
    ),
    "Again": _record(
        "From where on: a time, or an event by `source` and `event_id`; with none of them from the first that is kept.",
        {
            "since": _text("A day or a time.", maxLength=40), "source": _text("The source of the last event that came."),
            "event_id": _text("Its id."),
        },
        (),
    ),
    "ReplayState": _record(
        "How far one watcher is.",
        {
            "watcher": _text("Which one."), "state": _text("Is it done?", enum=["running", "done", "failed"]),
            "events": _number("Events that are published again, or wait for it.", 2**53),
            "of": _number("How many they will be, as far as they are counted.", 2**53), "reason": _text("Why it failed."),
        },
    ),
    "Replays": _record(
        "How far the partner's last replay is.",
        {
            "replays": {"type": "array", "items": {"$ref": "#/components/schemas/ReplayState"},
                        "description": "By watcher; none: there was no replay since it began."},
            "not_asked": _NOT_ASKED,
        },
    ),
    "Empty": _record("Nothing.", {}, ()),
}  # fmt: skip

_EXAMPLES: Final[Mapping[str, Json]] = {
    "NewConnection": {"imap_provider_code": "PLAIN", "imap_host": "imap.example.com"},
    "ConnectionChange": {"imap_port": 993},
    "NewUser": {"tag": "alice", "login_username": "alice@example.com", "login_password": "..."},
    "UserChange": {"archived": False},
    "PartnerChange": {"success_url": "https://app.example.com/done", "redirect_hosts": ["app.example.com"]},
    "Parking": {"reason": "the owner is away"},
    "Since": {"since": "2026-11-01"},
    "Again": {"since": "2026-11-01T08:00:00Z"},
    "Empty": {},
}

_PARAMETERS: Final[Json] = {
    "code": {
        "name": "code", "in": "path", "required": True, "description": "The connection's code.", "example": "PLAIN",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    },
    "tag": {
        "name": "tag", "in": "path", "required": True, "description": "The user's tag, escaped.", "example": "alice",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    },
    "id": {
        "name": "id", "in": "path", "required": True, "description": "The dead letter's id.",
        "example": "00000000000000000000.mqtt.17", "schema": {"type": "string", "minLength": 1, "maxLength": 100},
    },
}  # fmt: skip
_PAGE: Final = (
    {
        "name": "limit", "in": "query", "description": "Entries of the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": MAX_PAGE},
    },
    {
        "name": "after", "in": "query", "description": "Begin behind this one; the header `Link` of a page has the whole URL.",
        "schema": {"type": "string", "maxLength": 200},
    },
)  # fmt: skip

_ONE, _USER = "/api/v1/connections/{code}", "/api/v1/connections/{code}/users/{tag}"
_DEAD, _LETTER, _REPLAY = "/api/v1/dead-letters", "/api/v1/dead-letters/{id}", "/api/v1/replay"

_OPERATIONS: Final[Sequence[tuple[str, str, str, str, str, int, str, str]]] = (
    # method, path, operation, tag, summary, status, answer, body
    ("get", "/api/v1/partner", "showPartner", "partner", "Show the partner who asks", 200, "Partner", ""),
    ("put", "/api/v1/partner", "changePartner", "partner", "Change its settings", 200, "Partner", "PartnerChange"),
    (
        "post",
        "/api/v1/partner/keys",
        "addKey",
        "partner",
        "Make another API key beside the one in use",
        201,
        "ApiKey",
        "Empty",
    ),
    (
        "delete",
        "/api/v1/partner/keys/older",
        "retireKey",
        "partner",
        "End the older API key, by the newer one",
        204,
        "",
        "",
    ),
    ("get", "/api/v1/connections", "listConnections", "connections", "List connections", 200, "[ConnectionEntry]", ""),
    (
        "post",
        "/api/v1/connections",
        "addConnection",
        "connections",
        "Make a connection",
        201,
        "Connection",
        "NewConnection",
    ),
    ("get", _ONE, "showConnection", "connections", "Show a connection", 200, "Connection", ""),
    ("put", _ONE, "changeConnection", "connections", "Change a connection", 200, "Connection", "ConnectionChange"),
    ("delete", _ONE, "deleteConnection", "connections", "Delete a connection and all of its users", 204, "", ""),
    ("get", f"{_ONE}/users", "listUsers", "users", "List users, archived ones too", 200, "[UserEntry]", ""),
    ("post", f"{_ONE}/users", "addUser", "users", "Make a user", 201, "User", "NewUser"),
    ("get", _USER, "showUser", "users", "Show a user", 200, "User", ""),
    ("put", _USER, "changeUser", "users", "Change, connect or restore a user", 200, "User", "UserChange"),
    ("delete", _USER, "archiveUser", "users", "Archive a user", 204, "", ""),
    ("get", f"{_USER}/state", "showState", "users", "Show how a mailbox is right now", 200, "State", ""),
    ("post", f"{_USER}/park", "parkUser", "users", "Log in no more until unparked", 200, "User", "Parking"),
    ("post", f"{_USER}/unpark", "unparkUser", "users", "Log in again, at once", 200, "User", "Empty"),
    (
        "post",
        f"{_USER}/replay",
        "replayUser",
        "users",
        "Have the mails that are there told of again",
        202,
        "Replay",
        "Since",
    ),
    ("get", _DEAD, "listDeadLetters", "events", "List what could not be delivered", 200, "DeadLetters", ""),
    ("get", _LETTER, "showDeadLetter", "events", "Show a dead letter", 200, "DeadLetter", ""),
    ("get", f"{_LETTER}/payload", "downloadDeadLetter", "events", "Download what was not delivered", 200, BYTES, ""),
    ("post", f"{_LETTER}/retry", "retryDeadLetter", "events", "Try to deliver it again", 204, "", ""),
    ("delete", _LETTER, "discardDeadLetter", "events", "Discard it for good", 204, "", ""),
    ("post", _REPLAY, "replayEvents", "events", "Have events that are kept published again", 202, "Replays", "Again"),
    ("get", _REPLAY, "showReplay", "events", "Show how far the last replay is", 200, "Replays", ""),
)


@functools.cache
def document() -> Json:
    """The document."""
    paths: Json = {}
    for method, path, name, tag, summary, status, answer, body in _OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, name, tag, summary, status, answer, body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tmail",
            "version": __version__,
            "description": "Partners, their connections to mail providers, and the mailboxes that are watched. "
            "Paths and fields are those of SuperIMAP. The API key is a header; in a URL it would end up in logs.",
        },
        "tags": [
            {"name": "partner", "description": "Who asks: settings and API keys."},
            {"name": "connections", "description": "Mail providers, each with its settings."},
            {"name": "users", "description": "Mailboxes, under tags of the partner's choice."},
            {"name": "events", "description": "What was not delivered, and what is to be published again."},
        ],
        "security": [{"api_key": []}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "api_key": {
                    "type": "apiKey", "in": "header", "name": "x-api-key",
                    "description": "The partner's API key, in the header `x-api-key`.",
                }
            },
        },
    }  # fmt: skip


def _ref(name: str) -> Json:
    if name.startswith("["):
        return {"type": "array", "items": _ref(name[1:-1])}
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(path: str, name: str, tag: str, summary: str, status: int, answer: str, body: str) -> Json:
    listed = answer.startswith("[") or answer == "DeadLetters"
    granted: Json = {"description": "Done." if not answer else "As it is now."}
    if answer == BYTES:
        granted["content"] = {BYTES: {"schema": {}}}
    elif answer:
        granted["content"] = {"application/json": {"schema": _ref(answer)}}
    conflicts = (409,) if (body and answer not in ("Replay", "Replays")) or name.startswith("retire") else ()
    statuses = (*_ANY, *conflicts, *(_BODY if body else ()))
    found: Json = {
        "operationId": name, "tags": [tag], "summary": summary, "description": "",
        "parameters": [
            *(_PARAMETERS[one] for one in _PARAMETERS if f"{{{one}}}" in path),
            *(_PAGE if listed else ()),
        ],
        "responses": {
            str(status): granted,
            **{
                str(one): {"description": _STATUS[one], "content": {PROBLEM: {"schema": _ref("Problem")}}}
                for one in sorted(statuses)
            },
        },
    }  # fmt: skip
    if body:
        content = {"application/json": {"schema": _ref(body), "example": _EXAMPLES[body]}}
        found["requestBody"] = {"required": body.startswith("New"), "content": content}
    return found
