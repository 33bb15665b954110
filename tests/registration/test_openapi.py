"""The OpenAPI document against the routes, its own examples, and what the service really answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.registration.admin import Administrator, until
from tests.registration.conftest import Desk, Start
from tstack.identity.audit import Audit
from tstack.identity.key_admin import add_key
from tstack.identity.keys import RegistrationKey
from tstack.registration.limits import Limits
from tstack.registration.openapi import document
from tstack.registration.openapi_schemas import PENDING
from tstack.web import docs_page

EXAMPLES = 4
"""Requests that are made up for each operation and each way of making them."""

DOCUMENT = document()
SCHEMAS = DOCUMENT["components"]["schemas"]
METHODS = ("get", "post", "put", "patch", "delete")


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, found in DOCUMENT["paths"].items():
        for method, operation in found.items():
            yield method.upper(), path, operation


def valid(schema: Any, value: Any) -> None:
    """The value is what the schema says; names in it are the document's."""
    jsonschema_rs.Draft202012Validator({**schema, "components": {"schemas": SCHEMAS}}).validate(value)


def contents(operation: Any) -> Iterator[Any]:
    for part in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from part.get("content", {}).values()


async def test_every_route_is_documented_and_nothing_else(desk: Desk) -> None:
    app = desk.registration._runner.app  # type: ignore[union-attr]
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert routes == {(method, path) for method, path, _ in operations()}


def test_the_schemas_are_schemas_and_every_one_is_used() -> None:
    for schema in SCHEMAS.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert used == set(SCHEMAS)
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    for _, path, operation in operations():
        named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))


def test_examples_are_what_their_schemas_say() -> None:
    count = 0
    for schema in SCHEMAS.values():
        for example in schema.get("examples", ()):
            valid(schema, example)
            count += 1
    for _, _, operation in operations():
        for content in contents(operation):
            if "example" in content:
                valid(content["schema"], content["example"])
                count += 1
    assert count > 15


async def test_every_example_is_granted_and_answered_as_it_says(desk: Desk) -> None:
    """Each operation with its own examples, one after the other, on a device of that name; deletion last."""
    admin = await Administrator.of(desk)
    await admin.device("KTW-482", certificates=("5b1f0c9e7d",))
    await add_key(desk.store, Audit(desk.store), RegistrationKey("plant-a", quota=5), actor="tuser:test")
    await until(lambda: "plant-a" in desk.registration._keyring.keys)
    for waiting in (PENDING, PENDING | {"id": "1" * 32}):
        record = {name.title().replace("_", ""): value for name, value in waiting.items() if name != "confirm"}
        await desk.store.put(f"/pending/{waiting['id']}", json.dumps(record).encode())
    order = sorted(operations(), key=lambda one: one[0] == "DELETE")
    for method, path, operation in order:
        for one in operation.get("parameters", ()):
            if one["in"] == "path":
                example = "1" * 32 if operation["operationId"] == "rejectPending" else one["example"]
                path = path.replace(f"{{{one['name']}}}", example)
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        headers = {"Authorization": f"Bearer {admin.token}"} if operation["security"] == [{"admin_token": []}] else {}
        answer = await desk.ask(method, path, json=body, headers=headers)
        response = operation["responses"][str(answer.status)]
        expected = UNASKED.get(operation["operationId"])
        assert answer.status == expected if expected else answer.status < 300, (path, answer.text)
        if "content" in response:
            media_type = answer.headers["Content-Type"].partition(";")[0]
            content = response["content"][media_type]
            if "json" in media_type:
                valid(content["schema"], json.loads(answer.text))


UNASKED = {
    "showSelf": 401, "renewDevice": 401, "estSimpleEnroll": 401, "estServerKeygen": 401, "estSimpleReenroll": 401,
    "pollPending": 404,
}  # fmt: skip
"""What is answered to nobody in particular, who waits for nothing."""


@schemathesis.serializer("application/pkcs10")
def _as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_whatever_is_sent_is_answered_as_documented(start: Start, mode: GenerationMode) -> None:
    """schemathesis makes the requests up, right ones and wrong ones."""
    desk = await start(limits=Limits(token_burst=100_000, looks_burst=100_000, key_rate=0.0, rate=0.0))
    admin = await Administrator.of(desk)
    await admin.device("KTW-482", certificates=("5b1f0c9e7d",))
    schema = schemathesis.openapi.from_dict(DOCUMENT)

    counts = [
        await asyncio.to_thread(_try, result.ok(), mode, f"http://127.0.0.1:{desk.port}", admin.token)
        for result in schema.get_all_operations()
    ]
    assert sum(counts) > 30


def _try(operation: Any, mode: GenerationMode, url: str, token: str) -> int:
    """Send some requests; how many it were. Raises for an answer that is not as documented."""
    secured = operation.definition.raw["security"] == [{"admin_token": []}]
    headers = {"Authorization": f"Bearer {token}"} if secured else {}
    count = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(base_url=url, headers=headers, timeout=20, checks=CHECKS)

    try:
        send()
    except Unsatisfiable:  # there is nothing that could be wrong with it
        assert mode is not GenerationMode.POSITIVE
    return count


class Page(HTMLParser):
    """What a page fetches, links to and names; and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        assert set(given) <= {"href", "id", "lang", "charset", "name", "content"}
        if tag not in ("meta",):
            self.open.append(tag)
        if given.get("href"):
            self.links.add(str(given["href"]))
        if given.get("id"):
            assert given["id"] not in self.names
            self.names.add(str(given["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_says_all_of_it_and_asks_nobody_else_for_anything(desk: Desk) -> None:
    answer = await desk.ask("GET", "/docs")
    assert answer.headers["Content-Security-Policy"] == docs_page.POLICY
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    assert not page.tags & {"script", "img", "link", "iframe", "form", "object", "embed", "base"}
    assert "url(" not in docs_page.STYLE
    assert "@import" not in docs_page.STYLE
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.names
    assert {link for link in page.links if not link.startswith("#")} == {"/openapi.json"}
    for _, path, operation in operations():
        assert operation["operationId"] in page.names
        assert path in answer.text
    assert (await desk.ask("GET", "/openapi.json")).json == json.loads(json.dumps(DOCUMENT))


def test_nothing_in_the_document_becomes_markup() -> None:
    hostile = json.loads(json.dumps(DOCUMENT).replace("pump", "<script>alert(1)</script>"))
    hostile["info"]["description"] = '<img src="x">`<b>`'
    assert "<script" not in docs_page.page(hostile)
    assert "<img" not in docs_page.page(hostile)
    assert "<b>`" not in docs_page.page(hostile)
