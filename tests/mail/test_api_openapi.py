"""The API's OpenAPI document against the routes, its own examples, and what is really answered.

Every answer in the tests of the API is held to the document as well (`documented.check`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path
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

from tests.mail.desk import Desk, desk
from tests.mail.documented import DOCUMENT, SCHEMAS, check, valid
from tstack.mail.event import Mailbox
from tstack.mail.mailbox import Condition

EXAMPLES = 2
"""Requests that are made up for each operation and each way of making them."""


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as running:
        yield running


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, found in DOCUMENT["paths"].items():
        for method, operation in found.items():
            yield method.upper(), path, operation


async def test_every_route_is_documented_and_nothing_else(api: Desk) -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in api.server.app.router.routes()
        if route.resource is not None and route.resource.canonical.startswith("/api/")
    }
    assert routes == {(method, path) for method, path, _ in operations()}


def test_the_schemas_are_schemas_and_every_one_is_used() -> None:
    for schema in SCHEMAS.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    assert set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT))) == set(SCHEMAS)
    for _, path, operation in operations():
        named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
        for content in operation.get("requestBody", {}).get("content", {}).values():
            valid(content["schema"], content["example"])


def test_an_answer_that_is_not_documented_is_noticed() -> None:
    check("GET", "/somewhere/else", 299, "text/plain", None)
    with pytest.raises(KeyError):
        check("GET", "/api/v1/connections", 299, "application/json", [])
    with pytest.raises(jsonschema_rs.ValidationError):
        check("GET", "/api/v1/connections", 200, "application/json", [{"imap_provider_code": "PLAIN"}])


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_whatever_is_sent_is_answered_as_documented(api: Desk, mode: GenerationMode) -> None:
    """schemathesis makes the requests up, right ones and wrong ones."""
    await api.connection(imap_provider_code="PLAIN", imap_host="imap.example.com")
    await api.user("alice", code="PLAIN")
    api.watchers.conditions[Mailbox("acme", "PLAIN", "alice")] = Condition("connected")
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    found = sorted((result.ok() for result in schema.get_all_operations()), key=lambda one: one.method == "delete")
    counts = [await asyncio.to_thread(_try, one, mode, api.url, api.key) for one in found]
    assert sum(counts) > 20


def _try(operation: Any, mode: GenerationMode, url: str, key: str) -> int:
    """Send some requests; how many it were. Raises for an answer that is not as documented."""
    count = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(base_url=url, headers={"x-api-key": key}, timeout=20, checks=CHECKS)

    try:
        send()
    except Unsatisfiable:  # there is nothing that could be wrong with it
        assert mode is not GenerationMode.POSITIVE
    return count


class Page(HTMLParser):
    """What a page links to and names; and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if tag != "meta":
            self.open.append(tag)
        self.links.add(str(given.get("href") or "#"))
        self.names.add(str(given.get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_says_all_of_it_and_asks_nobody_else_for_anything(api: Desk) -> None:
    answer = await api.ask("GET", "/docs", key="")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    assert not page.tags & {"script", "img", "link", "iframe", "form", "object", "embed", "base"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.names
    assert {link for link in page.links if not link.startswith("#")} == {"/openapi.json"}
    for method, path, _ in operations():
        assert f"{method} {path}" in answer.text
    assert (await api.ask("GET", "/openapi.json", key="")).json == json.loads(json.dumps(DOCUMENT))
