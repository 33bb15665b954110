"""`GET /openapi.json`, and `GET /docs`: the same as a page of plain HTML, without a script."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

from aiohttp import web

from tstack.mail.api.openapi import document

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:0 auto;padding:1.5rem}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#8883;padding:.7rem;overflow:auto}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0}
h3{margin:2rem 0 .3rem}
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    return web.json_response(document())


async def page(request: web.Request) -> web.Response:
    """`GET /docs`."""
    return web.Response(text=_page(), content_type="text/html", headers={"Content-Security-Policy": _POLICY})


@functools.cache
def _page() -> str:
    said = document()
    info = said["info"]
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{_prose(info['description'])}</p>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>'
    )
    return "\n".join([head, *_operations(said), *_schemas(said["components"]["schemas"]), "</body></html>", ""])


def _operations(said: dict[str, Any]) -> Iterator[str]:
    for tag in said["tags"]:
        yield f"<h2>{escape(tag['name'].capitalize())}</h2><p>{_prose(tag['description'])}</p>"
        for path, methods in said["paths"].items():
            for method, one in methods.items():
                if tag["name"] in one["tags"]:
                    yield f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(one['summary'])}.</p>"
                    yield from _details(one)


def _details(one: dict[str, Any]) -> Iterator[str]:
    for content in one.get("requestBody", {}).get("content", {}).values():
        yield f"<p>Body: {_link(content['schema'])}</p><pre>{escape(json.dumps(content['example'], indent=2))}</pre>"
    yield "<table><tr><th>Status</th><th>What it says</th><th>Body</th></tr>"
    for status, response in one["responses"].items():
        bodies = " ".join(_link(content["schema"]) for content in response.get("content", {}).values())
        yield f"<tr><td>{status}</td><td>{_prose(response['description'])}</td><td>{bodies}</td></tr>"
    yield "</table>"


def _schemas(schemas: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Schemas</h2>"
    for name, schema in schemas.items():
        yield f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{_prose(schema["description"])}</p><table>'
        for field, what in schema["properties"].items():
            words = f"{_prose(what['description'])}{_choices(what)}"
            needed = "" if field in schema["required"] else " <i>May be absent.</i>"
            yield f"<tr><td><code>{escape(field)}</code></td><td>{words}{needed}</td></tr>"
        yield "</table>"


def _choices(schema: dict[str, Any]) -> str:
    return f" One of {', '.join(f'<code>{escape(one)}</code>' for one in schema['enum'])}." if "enum" in schema else ""


def _link(schema: dict[str, Any]) -> str:
    if not schema:
        return "bytes"
    if "items" in schema:
        return f"list of {_link(schema['items'])}"
    name = escape(schema["$ref"].rpartition("/")[2])
    return f'<a href="#{name}"><code>{name}</code></a>'


def _prose(text: str) -> str:
    """Text with `code` in it."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
