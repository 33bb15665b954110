"""The OpenAPI document as one page of plain HTML: no script, no font, no picture, nothing that is fetched from elsewhere.

Everything that is written into it is escaped; the one style sheet is inside, and the content security policy names its hash, so
that even a mistake in the escaping could run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

STYLE: Final = """
:root{color-scheme:light dark;--soft:#8883;--link:#06c}
@media(prefers-color-scheme:dark){:root{--link:#6bf}}
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:0 auto;padding:1.5rem}
a{color:var(--link)}code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:var(--soft);padding:.7rem;overflow:auto;border-radius:.4rem}
h2{margin-top:3rem;border-bottom:1px solid var(--soft)}h3{margin:2.2rem 0 .3rem}
h3 code{font-size:1rem}h3 b{display:inline-block;min-width:4.2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--soft)}
th{font-weight:600}td:first-child{white-space:nowrap}details{margin:.4rem 0}summary{cursor:pointer}
nav li{margin:.1rem 0}
"""

POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Json = dict[str, Any]


def page(document: Json) -> str:
    """The page."""
    info = document["info"]
    parts = [
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>", f"<p>{_prose(info['description'])}</p>",
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>',
    ]  # fmt: skip
    parts += ["<nav>", *_contents(document), "</nav>"]
    parts += _security(document)
    for tag in document["tags"]:
        parts += [
            f'<h2 id="{escape(tag["name"])}">{escape(tag["name"].capitalize())}</h2>',
            f"<p>{_prose(tag['description'])}</p>",
        ]
        for where, method, operation in _operations(document, tag["name"]):
            parts += _operation(document, where, method, operation)
    parts.append('<h2 id="schemas">Schemas</h2>')
    for name, schema in document["components"]["schemas"].items():
        parts += [
            f'<h3 id="schema-{escape(name)}"><code>{escape(name)}</code></h3>',
            f"<p>{_prose(schema['description'])}</p>",
        ]
        parts += _fields(schema)
    return "\n".join([*parts, "</body>", "</html>", ""])


def _contents(document: Json) -> Iterator[str]:
    yield "<ul>"
    for tag in document["tags"]:
        yield f'<li><a href="#{escape(tag["name"])}">{escape(tag["name"].capitalize())}</a><ul>'
        for where, method, operation in _operations(document, tag["name"]):
            name = escape(operation["operationId"])
            yield f'<li><a href="#{name}"><code>{method.upper()} {escape(where)}</code></a> {escape(operation["summary"])}</li>'
        yield "</ul></li>"
    yield '<li><a href="#schemas">Schemas</a></li></ul>'


def _operations(document: Json, tag: str) -> Iterator[tuple[str, str, Json]]:
    for where, operations in document["paths"].items():
        for method, operation in operations.items():
            if tag in operation["tags"]:
                yield where, method, operation


def _security(document: Json) -> Iterator[str]:
    yield "<h2>Who is asking</h2><table><tr><th>Name</th><th>How</th></tr>"
    for name, scheme in document["components"]["securitySchemes"].items():
        header = f"Authorization: {scheme['scheme'].capitalize()}" if "scheme" in scheme else f"{scheme['name']}:"
        how = f"<code>{escape(header)} ...</code> {_prose(scheme['description'])}"
        yield f"<tr><td><code>{escape(name)}</code></td><td>{how}</td></tr>"
    yield "</table>"


def _operation(document: Json, where: str, method: str, operation: Json) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f'<h3 id="{name}"><code><b>{method.upper()}</b> {escape(where)}</code></h3>'
    yield f"<p><strong>{escape(operation['summary'])}.</strong> {_prose(operation['description'])}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>Parameter</th><th>In</th><th>What it is</th></tr>"
        for one in parameters:
            what = f"{_prose(one['description'])} {_kind(one['schema'])}"
            yield f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td><td>{what}</td></tr>"
        yield "</table>"
    if request := operation.get("requestBody"):
        yield from _body("Request", request["content"])
    yield "<table><tr><th>Status</th><th>What it says</th><th>Body</th></tr>"
    for status, response in operation["responses"].items():
        kinds = " ".join(_linked(one["schema"]) for one in response.get("content", {}).values())
        yield f"<tr><td>{escape(status)}</td><td>{_prose(response['description'])}</td><td>{kinds}</td></tr>"
    yield "</table>"
    example = _example(document, operation)
    if example is not None:
        yield f"<details><summary>Example of an answer</summary><pre>{_json(example)}</pre></details>"


def _example(document: Json, operation: Json) -> Any:
    for status, response in operation["responses"].items():
        for one in response.get("content", {}).values() if status.startswith("2") else ():
            name = one["schema"].get("$ref", "").rpartition("/")[2]
            for example in document["components"]["schemas"].get(name, {}).get("examples", ()):
                return example
    return None


def _body(title: str, content: Json) -> Iterator[str]:
    for media_type, one in content.items():
        yield f"<p>{title}: <code>{escape(media_type)}</code>, {_linked(one['schema'])}</p>"
        if "example" in one:
            yield f"<pre>{_json(one['example'])}</pre>"


def _fields(schema: Json) -> Iterator[str]:
    yield "<table><tr><th>Field</th><th>What it is</th></tr>"
    for name, field in schema["properties"].items():
        optional = "" if name in schema["required"] else " <i>May be absent.</i>"
        what = f"{_prose(field.get('description', ''))} {_kind(field)}{optional}"
        yield f"<tr><td><code>{escape(name)}</code></td><td>{what}</td></tr>"
    yield "</table>"
    for example in schema.get("examples", ()):
        yield f"<details><summary>Example</summary><pre>{_json(example)}</pre></details>"


def _kind(schema: Json) -> str:
    if "enum" in schema:
        return "One of " + ", ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"]) + "."
    if "maximum" in schema:
        absent = f", {schema['default']} when absent" if "default" in schema else ""
        return f"{schema['minimum']} to {schema['maximum']}{absent}."
    if schema.get("type") == "array" and "$ref" in schema["items"]:
        return _linked(schema["items"])
    return ""


def _linked(schema: Json) -> str:
    if "items" in schema:
        return f"list of {_linked(schema['items'])}"
    name = schema.get("$ref", "").rpartition("/")[2]
    return f'<a href="#schema-{escape(name)}"><code>{escape(name)}</code></a>' if name else ""


def _prose(text: str) -> str:
    """Text with `code` in it."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=2, ensure_ascii=False))
