"""The pages that a partner's users see: plain HTML, without script, and nothing of them is fetched from elsewhere.

All that is written into them is escaped; the one style sheet is inside, and the content security policy names its hash, so that
even a mistake in the escaping could run nothing. Forms go to us alone, and from there to where the link may lead back to:
browsers hold redirects after a form against the policy too.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:17px/1.5 system-ui,sans-serif;max-width:26rem;margin:8vh auto;padding:1.2rem}
label{display:block;margin:1rem 0 .2rem}
input{font:inherit;width:100%;box-sizing:border-box;padding:.5rem}
button{font:inherit;margin-top:1.4rem;padding:.5rem 1.4rem;cursor:pointer}
.fault{border-left:.3rem solid #c33;padding:.2rem .8rem;overflow-wrap:anywhere}
.soft{opacity:.75;font-size:.9rem;overflow-wrap:anywhere}
"""

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def login_form(state: str, host: str, login: str, targets: Iterable[str], fault: str = "") -> web.Response:
    """Name and password of a mailbox, which go to `host`. `fault`: what was wrong with those before."""
    said = f'<p class="fault" role="alert">{escape(fault)}</p>' if fault else ""
    body = f"""<h1>Connect your mailbox</h1>{said}
<form method="post" action="/users/connect/login">
<input type="hidden" name="state" value="{escape(state)}">
<label for="login">Mail address or user name</label>
<input id="login" name="login" value="{escape(login)}" autocomplete="username" autocapitalize="none" maxlength="320" required>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="1000" required>
<button>Connect</button></form>
<p class="soft">They are tried at {escape(host)} before they are kept, encrypted. Mail is only read.</p>"""
    return _page("Connect your mailbox", body, 422 if fault else 200, targets)


def disconnect_form(state: str, email: str, targets: Iterable[str]) -> web.Response:
    """Whether the mailbox is really to be disconnected."""
    body = f"""<h1>Disconnect your mailbox</h1>
<p>{escape(email or "Your mailbox")} will not be watched any more, and what we log in with is deleted.</p>
<form method="post" action="/users/disconnect/confirm">
<input type="hidden" name="state" value="{escape(state)}">
<button>Disconnect</button></form>"""
    return _page("Disconnect your mailbox", body, 200, targets)


def message(title: str, text: str, hint: str = "", status: int = 200) -> web.Response:
    """A page that ends here."""
    more = f'<p class="soft">{escape(hint)}</p>' if hint else ""
    return _page(title, f"<h1>{escape(title)}</h1><p>{escape(text)}</p>{more}", status, ())


def _page(title: str, body: str, status: int, targets: Iterable[str]) -> web.Response:
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>
"""
    origins = sorted({f"{parts.scheme}://{parts.netloc}" for url in targets if url and (parts := urlsplit(url))})
    forms = " ".join(("'self'", *origins))
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {forms}"
    )
    return web.Response(text=text, status=status, content_type="text/html", headers={"Content-Security-Policy": policy})
