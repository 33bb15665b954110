"""The application as a whole: what is where, and what every answer carries. `tmail` serves it beside what else it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from tstack.mail.api import docs, pages, problems
from tstack.mail.api.connections import Connections
from tstack.mail.api.letters import DeadLetters
from tstack.mail.api.links import LinkPages
from tstack.mail.api.partner import Partners
from tstack.mail.api.requests import MAX_BODY
from tstack.mail.api.service import Service
from tstack.mail.api.users import Users
from tstack.mail.blob_http import add_routes
from tstack.mail.blobs import Blobs
from tstack.mail.connect import BadLink
from tstack.mail.records import Partner

Handler = Callable[[web.Request, Partner], Awaitable[web.StreamResponse]]

HEADERS: Final = {
    "Server": "tmail",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer carries, unless it says otherwise itself; `Server` names no version."""


def create(service: Service, blobs: Blobs | None = None) -> web.Application:
    """The application, to be run by an `AppRunner`, alone (`server.Server`) or as part of another.

    `service` says all that it works with; `blobs` are kept mails that it serves as well. Run it without an access log: the
    query of a link is as good as the link.
    """
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_answer_errors])

    async def finish(request: web.Request, response: web.StreamResponse) -> None:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers["Server"] = HEADERS["Server"]
        if service.secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"

    app.on_response_prepare.append(finish)
    _add_api(app, service)
    links = LinkPages(service)
    app.router.add_get("/users/connect/new", links.connect, allow_head=False)
    app.router.add_post("/users/connect/login", links.login)
    app.router.add_get("/users/connect/callback", links.callback, allow_head=False)
    app.router.add_get("/users/disconnect/new", links.disconnect, allow_head=False)
    app.router.add_post("/users/disconnect/confirm", links.disconnect_now)
    app.router.add_get("/openapi.json", docs.openapi)
    app.router.add_get("/docs", docs.page)
    if blobs is not None:
        add_routes(app, blobs)
    return app


def _add_api(app: web.Application, service: Service) -> None:
    def known(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await handler(request, await service.partner(request))

        return handle

    partner, connections, users = Partners(service), Connections(service), Users(service)
    letters, letter = DeadLetters(service), "/api/v1/dead-letters/{id}"
    one, many = "/api/v1/connections/{code}", "/api/v1/connections"
    everyone, user = one + "/users", one + "/users/{tag}"
    routes: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/api/v1/partner", partner.show),
        ("PUT", "/api/v1/partner", partner.change),
        ("POST", "/api/v1/partner/keys", partner.add_key),
        ("DELETE", "/api/v1/partner/keys/older", partner.retire_key),
        ("GET", many, connections.list),
        ("POST", many, connections.create),
        ("GET", one, connections.show),
        ("PUT", one, connections.change),
        ("DELETE", one, connections.delete),
        ("GET", everyone, users.list),
        ("POST", everyone, users.create),
        ("GET", user, users.show),
        ("PUT", user, users.change),
        ("DELETE", user, users.archive),
        ("GET", user + "/state", users.state),
        ("POST", user + "/park", users.park),
        ("POST", user + "/unpark", users.unpark),
        ("POST", user + "/replay", users.replay),
        ("GET", "/api/v1/dead-letters", letters.list),
        ("GET", letter, letters.show),
        ("GET", letter + "/payload", letters.payload),
        ("POST", letter + "/retry", letters.retry),
        ("DELETE", letter, letters.discard),
        ("POST", "/api/v1/replay", letters.replay),
        ("GET", "/api/v1/replay", letters.replaying),
    )
    for method, path, handler in routes:
        app.router.add_route(method, path, known(handler))


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadLink as error:
        return pages.message("That did not work", error.message, error.hint, 400)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is logged and answered there
        problem = problems.problem_of(error)
        if request.path.startswith("/users/"):
            response = pages.message("That did not work", _sentence(problem.message), problem.hint, problem.status)
            response.headers.update(problem.headers)
            return response
        return problems.answer(problem)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
