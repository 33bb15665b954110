"""`GET /openapi.json`, and `GET /docs`: the same as a page of plain HTML, without a script."""

from __future__ import annotations

import functools

from aiohttp import web

from tstack.mail.api.openapi import document
from tstack.web import docs_page


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    return web.json_response(document())


async def page(request: web.Request) -> web.Response:
    """`GET /docs`."""
    headers = {"Content-Security-Policy": docs_page.POLICY}
    return web.Response(text=_page(), content_type="text/html", headers=headers)


@functools.cache
def _page() -> str:
    return docs_page.page(document())
