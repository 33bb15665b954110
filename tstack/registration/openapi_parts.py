"""What the pieces of the OpenAPI document are built with (OpenAPI 3.1, JSON Schema 2020-12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

PROBLEM = "application/problem+json"

STATUS_TEXTS = {
    400: "The request is not what it should be; `detail` says what, `hint` what to send.",
    401: "Nobody has said who is asking, or what was shown is wrong. `WWW-Authenticate` names the scheme.",
    403: "Known, but not allowed.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "What is there already stands in the way.",
    413: "The body is too large.",
    415: "The body is not called JSON.",
    422: "The Idempotency-Key has come before with another body.",
    429: "Too many requests, or too many wrong secrets: wait as long as `Retry-After` says.",
    503: "Not possible at the moment: try again after `Retry-After`.",
}


def text(description: str, **more: Any) -> Json:
    """A string."""
    return {"type": "string", "description": description, **more}


def time(description: str) -> Json:
    """A time, or "" for none."""
    return text(f"{description} RFC 3339 in UTC; empty: none.", examples=["2027-01-31T00:00:00Z"])


def flag(description: str) -> Json:
    """True or false."""
    return {"type": "boolean", "description": description}


def texts(description: str) -> Json:
    """A list of strings."""
    return {"type": "array", "items": {"type": "string"}, "description": description}


def many(schema: str, description: str) -> Json:
    """A list of what another schema describes."""
    return {"type": "array", "items": ref(schema), "description": description}


def record(description: str, properties: Json, *, optional: Sequence[str] = (), example: Any = None) -> Json:
    """An object with these fields and no others."""
    schema: Json = {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return schema | ({"examples": [example]} if example is not None else {})


def ref(schema: str) -> Json:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{schema}"}


def query(name: str, description: str, **schema: Any) -> Json:
    """A parameter in the query."""
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string", **schema}}


def path(name: str, description: str, example: str, **schema: Any) -> Json:
    """A parameter in the path."""
    return {
        "name": name, "in": "path", "required": True, "description": description, "example": example,
        "schema": {"type": "string", **schema},
    }  # fmt: skip


def content(schema: str | Json, example: Any = None, media_type: str = "application/json") -> Json:
    """A body of one kind."""
    of = ref(schema) if isinstance(schema, str) else schema
    return {"content": {media_type: {"schema": of} | ({"example": example} if example is not None else {})}}


def body(schema: str, example: Any, description: str = "") -> Json:
    """The body of a request."""
    return {"required": True, "description": description, **content(schema, example)}


def answer(description: str, schema: str | Json | None = None, example: Any = None, **more: Any) -> Json:
    """What a request is answered when it is granted."""
    return {"description": description, **(content(schema, example, **more) if schema is not None else {})}


def problems(*statuses: int) -> Json:
    """The refusals of one operation."""
    return {
        str(status): {"description": STATUS_TEXTS[status], **content("Problem", media_type=PROBLEM)}
        for status in statuses
    }


def operation(
    name: str,
    tag: str,
    summary: str,
    description: str,
    responses: Mapping[str, Any],
    *,
    scope: str = "",
    login: str = "",
    parameters: Sequence[Json] = (),
    request: Json | None = None,
) -> Json:
    """One operation. `scope`: of the admin token that it wants; `login`: another security scheme."""
    security: list[Json] = [{login: []}] if login else []
    if scope:
        security = [{"admin_token": []}]
        description = f"{description} Wants a token with the scope `{scope}`."
    found: Json = {
        "operationId": name, "tags": [tag], "summary": summary, "description": description.strip(),
        "security": security, "responses": dict(responses),
    }  # fmt: skip
    if parameters:
        found["parameters"] = list(parameters)
    if request is not None:
        found["requestBody"] = request
    return found
