"""What a partner's user does in the browser: by OAuth with a real provider, by a password with a real Dovecot."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import pytest
from yarl import URL

from tests.dovecot import Dovecot
from tests.mail.desk import Answer, Browser, Desk, desk
from tests.mosquitto import Pki
from tests.processes import free_port
from tstack.mail import admin
from tstack.mail.api.service import Rate, Rates
from tstack.mail.connect import BadLink, Links
from tstack.mail.event import Mailbox
from tstack.mail.records import User

BOX = Mailbox("acme", "OAUTH2", "bob")
PLAIN_BOX = Mailbox("acme", "PLAIN", "bob")
DONE = "https://app.example.com/done"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def dovecot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dovecot]:
    with Dovecot(tls=Pki(tmp_path_factory.mktemp("pki")).server()) as server:
        yield server


async def link(api: Desk, which: str = "connect_url", code: str = "OAUTH2") -> str:
    shown = await api.ask("GET", f"/api/v1/connections/{code}/users/bob")
    return str(shown.json[which])


async def user_of(api: Desk, box: Mailbox = BOX) -> User:
    return await admin.get_user(api.store, box)


async def consent(api: Desk, browser: Browser, url: str) -> str:
    """From the link to the provider and until it leads back: where to."""
    begun = await browser.get(url)
    assert begun.status == 302, begun.text
    assert begun.headers["Location"].startswith(api.provider.url)
    back = await browser.get(begun.headers["Location"])
    assert back.status == 302, back.text
    return back.headers["Location"]


def is_failure(answer: Answer, error: str) -> bool:
    found = urlsplit(answer.headers["Location"])
    query = parse_qs(found.query)
    return answer.status == 303 and found.path == "/failed" and query == {"a": ["b"], "error": [error]}


# -- OAuth ------------------------------------------------------------------------------------------------------------


async def test_a_user_connects_by_oauth(api: Desk) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as browser:
        ended = await browser.get(await consent(api, browser, await link(api)))
        assert (ended.status, ended.headers["Location"]) == (303, DONE)
        assert ended.cookies["tmail"]["max-age"] == "0"
    user = await user_of(api)
    assert (user.email, bool(user.connected_at)) == ("bob@example.com", True)
    assert admin.open_secret(api.service.sealer, user) in api.provider.refresh_tokens


async def test_the_consent_is_asked_for_with_state_and_pkce(api: Desk) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as browser:
        begun = await browser.get(await link(api))
    query = parse_qs(urlsplit(begun.headers["Location"]).query)
    assert query["code_challenge_method"] == ["S256"]
    assert len(query["state"][0]) == len(query["code_challenge"][0]) == 43
    cookie = begun.cookies["tmail"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
    assert query["state"][0] not in cookie.value


async def test_what_was_begun_in_one_browser_does_not_end_in_another(api: Desk) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as attacker, api.browser() as victim:
        back = await consent(api, attacker, await link(api))
        assert "was not begun in this browser" in (await victim.get(back)).text  # no cookie
        await consent(api, victim, await link(api))
        assert "was not begun in this browser" in (await victim.get(back)).text  # another state
    assert not (await user_of(api)).connected
    assert api.provider.count("/token") == 0


async def test_a_code_is_of_no_use_without_what_was_begun(api: Desk) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as browser, api.browser() as other:
        first, second = await consent(api, browser, await link(api)), await consent(api, other, await link(api))
        code = parse_qs(urlsplit(second).query)["code"][0]
        state = parse_qs(urlsplit(first).query)["state"][0]
        ended = await browser.get(f"/users/connect/callback?code={code}&state={state}")
    assert is_failure(ended, "provider_error")  # PKCE: the code belongs to another verifier
    assert not (await user_of(api)).connected


@pytest.mark.parametrize(
    ("more", "error"),
    [("error=access_denied", "access_denied"), ("error=%3Cscript%3E", "refused"),
     ("code=x&iss=https://evil.example", "wrong_issuer"),
     ("", "provider_error")],
)  # fmt: skip
async def test_what_a_provider_can_answer(api: Desk, more: str, error: str) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as browser:
        back = await consent(api, browser, await link(api))
        state = parse_qs(urlsplit(back).query)["state"][0]
        assert is_failure(await browser.get(f"/users/connect/callback?state={state}&{more}"), error)
    assert not (await user_of(api)).connected


async def test_a_provider_that_gives_too_little(api: Desk) -> None:
    await api.connection()
    await api.user()
    api.provider.refreshes_given = False
    async with api.browser() as browser:
        assert is_failure(await browser.get(await consent(api, browser, await link(api))), "not_enough")
    api.provider.refreshes_given, api.provider.fault = True, "status:500"
    async with api.browser() as browser:
        assert is_failure(await browser.get(await consent(api, browser, await link(api))), "provider_error")


async def test_a_connection_that_is_not_set_up_yet(api: Desk) -> None:
    await api.connection(imap_provider_code="GMAIL_OAUTH2")
    await api.user(code="GMAIL_OAUTH2")
    async with api.browser() as browser:
        assert is_failure(await browser.get(await link(api, code="GMAIL_OAUTH2")), "not_configured")


async def test_a_user_disconnects_by_oauth(api: Desk) -> None:
    await api.connection()
    token = api.provider.consent()
    await api.user(email="bob@example.com", oauth2_refresh_token=token)
    async with api.browser() as browser:
        asked = await browser.get(await link(api, "disconnect_url"))
        assert (await user_of(api)).connected  # opening it changes nothing
        assert "bob@example.com will not be watched" in asked.text
        ended = await browser.post("/users/disconnect/confirm", state=asked.state)
    assert (ended.status, ended.headers["Location"]) == (303, DONE)
    user = await user_of(api)
    assert (user.email, user.secret, user.connected_at) == ("", "", "")
    assert api.provider.revoked == [token]


async def test_a_provider_that_does_not_revoke_holds_nobody_up(api: Desk) -> None:
    await api.connection(
        imap_provider_code="OAUTH2", imap_host="imap.example.com",
        **api.provider.settings | {"oauth2_revoke_url": f"http://127.0.0.1:{free_port()}/"},
    )  # fmt: skip
    await api.user(email="bob@example.com", oauth2_refresh_token="token")
    async with api.browser() as browser:
        asked = await browser.get(await link(api, "disconnect_url"))
        assert (await browser.post("/users/disconnect/confirm", state=asked.state)).status == 303
    assert not (await user_of(api)).connected


# -- links ------------------------------------------------------------------------------------------------------------


async def test_a_link_is_good_for_half_an_hour_and_for_what_it_says(api: Desk) -> None:
    await api.connection()
    await api.user()
    await api.user("eve")
    url = await link(api)
    sig = parse_qs(urlsplit(url).query)["sig"][0]
    assert re.fullmatch("[0-9a-f]{64}", sig)
    async with api.browser() as browser:
        for bad in (
            url.replace("bob", "eve"), url.replace("/connect/", "/disconnect/"), url.replace(sig, sig[:10]),
            url.replace(sig, sig[::-1]), url.replace("ts=1", "ts=2"), url.replace("acme", "nobody"), url.split("?")[0],
            url.replace("acme", quote("../../user/x")), url.replace("ts=", "ts=%C2%B2"), url.replace(sig, "%C3%A9" * 64),
        ):  # fmt: skip
            answer = await browser.get(bad)
            assert (answer.status, "This link is not good" in answer.text) == (400, True), bad
        api.clock.now += 1801
        answer = await browser.get(url)
        assert (answer.status, "expired" in answer.text) == (400, True)
        api.clock.now -= 1
        assert (await browser.get(url)).status == 302


async def test_a_link_outlives_the_change_of_keys(api: Desk) -> None:
    await api.connection()
    await api.user()
    newer = (await api.ask("POST", "/api/v1/partner/keys")).json["api_key"]
    url = await link(api)
    async with api.browser() as browser:
        assert (await browser.get(url)).status == 302
        await api.ask("DELETE", "/api/v1/partner/keys/older", key=newer)
        assert (await browser.get(url)).status == 400  # whoever had the old key makes no links any more
        assert (await browser.get((await api.ask("GET", "/api/v1/connections/OAUTH2/users/bob", key=newer)).json["connect_url"])
                ).status == 302  # fmt: skip


async def test_what_was_begun_must_end_in_time(api: Desk) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as browser:
        back = await consent(api, browser, await link(api))
        api.clock.now += 901
        assert "took too long" in (await browser.get(back)).text


async def test_a_mailbox_that_is_archived_or_gone(api: Desk) -> None:
    await api.connection()
    await api.user()
    url = await link(api)
    await api.ask("DELETE", "/api/v1/connections/OAUTH2/users/bob")
    async with api.browser() as browser:
        assert "no longer there" in (await browser.get(url)).text
        await api.ask("DELETE", "/api/v1/connections/OAUTH2")
        assert "no longer there" in (await browser.get(url)).text


@pytest.mark.parametrize(
    "target",
    ["https://evil.example.com/", "https://app.example.com.evil.example/", "https://app.example.com@evil.example/",
     "//evil.example/",
     "javascript:alert(1)", "https://app.example.com:8443/", "http://app.example.com/", "https://app.example.com\\@evil.example/",
     "https://app.example.com/" + "x" * 1000],
)  # fmt: skip
async def test_a_link_leads_back_to_allowed_hosts_only(api: Desk, target: str) -> None:
    await api.connection()
    await api.user()
    async with api.browser() as browser:
        for name in ("success", "failure"):
            answer = await browser.get(f"{await link(api)}&{name}={quote(target, safe='')}")
            assert answer.status == 400, answer.headers
            assert "Location" not in answer.headers


async def test_a_link_may_say_where_it_leads_back_to(api: Desk) -> None:
    await api.connection()
    await api.user()
    await api.ask("PUT", "/api/v1/partner", json={"redirect_hosts": ["other.example.com:8443"]})
    for how in ("&", "?"):  # the original's guide has clients append "?success=..."
        target = "https://other.example.com:8443/back?a=b"
        async with api.browser() as browser:
            url = f"{await link(api)}{how}success={quote(target, safe='')}"
            ended = await browser.get(await consent(api, browser, url))
        assert ended.headers["Location"] == target


async def test_a_partner_without_urls_gets_a_page(api: Desk) -> None:
    await api.ask("PUT", "/api/v1/partner", json={"success_url": "", "failure_url": ""})
    await api.connection()
    await api.user()
    async with api.browser() as browser:
        ended = await browser.get(await consent(api, browser, await link(api)))
        assert (ended.status, "Your mailbox is connected." in ended.text) == (200, True)
        back = await consent(api, browser, await link(api))
        api.provider.fault = "error:invalid_grant"
        failed = await browser.get(back)
        assert (failed.status, "did not let us in" in failed.text) == (502, True)


def test_one_s_cookie_is_no_other_s(api_links: Links) -> None:
    with pytest.raises(BadLink):
        api_links.resume("k1.AAAA", "connect", "")
    with pytest.raises(BadLink):
        api_links.resume("", "connect", "")


@pytest.fixture
def api_links() -> Links:
    from tstack.identity.seal import Sealer

    return Links(Sealer({"k1": b"k" * 32}), "https://mail.example.com/")


# -- the form ---------------------------------------------------------------------------------------------------------


async def plain(api: Desk, dovecot: Dovecot, **more: object) -> None:
    where = {"imap_host": "127.0.0.1", "imap_port": dovecot.port, "imap_tls": "none", **more}
    made = await api.connection(imap_provider_code="PLAIN", **where)
    assert made.status == 201, made.text
    await api.user(code="PLAIN")


async def test_a_user_connects_by_a_password(api: Desk, dovecot: Dovecot) -> None:
    await plain(api, dovecot)
    async with api.browser() as browser:
        form = await browser.get(await link(api, code="PLAIN"))
        assert form.status == 200
        wrong = await browser.post(
            "/users/connect/login", state=form.state, login="bob@example.com", password="guess <b>"
        )
        assert wrong.status == 422
        assert "does not accept this name and password" in wrong.text
        assert 'value="bob@example.com"' in wrong.text
        assert "guess" not in wrong.text
        assert not (await user_of(api, PLAIN_BOX)).connected
        ended = await browser.post(
            "/users/connect/login", state=wrong.state, login="bob@example.com", password="secret"
        )
        assert (ended.status, ended.headers["Location"]) == (303, DONE)
    user = await user_of(api, PLAIN_BOX)
    assert (user.login, user.email, bool(user.connected_at)) == ("bob@example.com", "bob@example.com", True)
    assert admin.open_secret(api.service.sealer, user) == "secret"


async def test_the_page_is_our_own_and_fetches_nothing(api: Desk, dovecot: Dovecot) -> None:
    await plain(api, dovecot)
    async with api.browser() as browser:
        form = await browser.get(await link(api, code="PLAIN"))
    policy = form.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self' https://app.example.com" in policy
    assert form.headers["Referrer-Policy"] == "no-referrer"
    assert form.headers["Cache-Control"] == "no-store"
    assert not re.findall(r"<script|src=|https?://|<link|@import|url\(", form.text)


async def test_a_form_from_elsewhere_counts_for_nothing(api: Desk, dovecot: Dovecot) -> None:
    await plain(api, dovecot)
    right = {"login": "bob", "password": "secret"}
    async with api.browser() as browser, api.browser() as other:
        form = await browser.get(await link(api, code="PLAIN"))
        asked = await browser.get(await link(api, code="PLAIN"))
        for state in ("", "x", form.state):  # the second page is the one that counts in this browser
            assert (await browser.post("/users/connect/login", state=state, **right)).status == 400
        assert (await other.post("/users/connect/login", state=asked.state, **right)).status == 400
        cross = await browser.post(
            "/users/connect/login", headers={"Sec-Fetch-Site": "cross-site"}, state=asked.state, **right
        )
        assert cross.status == 400
        assert (
            await browser.post("/users/disconnect/confirm", state=asked.state)
        ).status == 400  # begun for something else
        assert not (await user_of(api, PLAIN_BOX)).connected
        assert (await browser.post("/users/connect/login", state=asked.state, **right)).status == 303


@pytest.mark.parametrize(
    ("where", "said"),
    [({"imap_port": 1}, "cannot be reached"), ({"imap_tls": "implicit"}, "certificate is not believed"),
     ({"imap_tls": "starttls"}, "certificate is not believed")],
)  # fmt: skip
async def test_what_is_wrong_is_said(api: Desk, dovecot: Dovecot, where: dict[str, object], said: str) -> None:
    if where.get("imap_tls") == "implicit":
        where = where | {"imap_port": dovecot.tls_port}
    await plain(api, dovecot, **where)
    async with api.browser() as browser:
        form = await browser.get(await link(api, code="PLAIN"))
        answer = await browser.post("/users/connect/login", state=form.state, login="bob", password="secret")
    assert answer.status == 422
    assert said in answer.text


@pytest.mark.parametrize(
    "fields",
    [{}, {"login": "bob"}, {"login": "b\x01b", "password": "x"}, {"login": "b", "password": "\0"},
     {"login": "x" * 321, "password": "x"}, {"login": "b", "password": "x" * 1001}],
)  # fmt: skip
async def test_a_form_with_nonsense(api: Desk, dovecot: Dovecot, fields: dict[str, str]) -> None:
    await plain(api, dovecot)
    async with api.browser() as browser:
        form = await browser.get(await link(api, code="PLAIN"))
        answer = await browser.post("/users/connect/login", state=form.state, **fields)
    assert (answer.status, "hold what cannot be part of them" in answer.text) == (422, True)


@pytest.mark.parametrize("data", [b"state=%ff", b"\xff", b"&" * 200, b"state=a&state=b"])
@pytest.mark.parametrize("charset", ["utf-8", "no-such"])
async def test_a_form_that_is_none(api: Desk, data: bytes, charset: str) -> None:
    kind = {"Content-Type": f"application/x-www-form-urlencoded; charset={charset}"}
    answer = await api.ask("POST", "/users/connect/login", data=data, headers=kind)
    assert (answer.status, answer.headers["Content-Type"]) == (400, "text/html; charset=utf-8")


async def test_passwords_cannot_be_guessed_at_the_form(tmp_path: Path, dovecot: Dovecot) -> None:
    free = Rate(1000, 0.0)
    async with desk(tmp_path, rates=Rates(free, free, free, trial=Rate(2, 60.0))) as api:
        await plain(api, dovecot)
        async with api.browser() as browser:
            form = await browser.get(await link(api, code="PLAIN"))
            for _ in range(2):
                form = await browser.post("/users/connect/login", state=form.state, login="bob", password="guess")
                assert "does not accept" in form.text
            last = await browser.post("/users/connect/login", state=form.state, login="bob", password="secret")
    assert "Too many tries: wait 60 s, please." in last.text


async def test_a_user_disconnects_what_a_password_opened(api: Desk, dovecot: Dovecot) -> None:
    await plain(api, dovecot)
    await api.ask(
        "PUT", "/api/v1/connections/PLAIN/users/bob", json={"login_username": "bob", "login_password": "secret"}
    )
    async with api.browser() as browser:
        asked = await browser.get(await link(api, "disconnect_url", "PLAIN"))
        assert (await browser.post("/users/disconnect/confirm", state=asked.state)).status == 303
    user = await user_of(api, PLAIN_BOX)
    assert (user.login, user.secret) == ("", "")


async def test_behind_https_cookies_are_for_https_alone(tmp_path: Path) -> None:
    async with desk(tmp_path, secure=True) as api:
        await api.connection()
        await api.user()
        begun = await api.ask("GET", URL(await link(api), encoded=True))
        cookie = begun.cookies["__Host-tmail"]
        assert cookie["secure"]
        assert begun.headers["Strict-Transport-Security"]


async def test_too_many_links(tmp_path: Path) -> None:
    free = Rate(1000, 0.0)
    async with desk(tmp_path, rates=Rates(free, free, pages=Rate(2, 60.0))) as api, aiohttp.ClientSession() as session:
        statuses = []
        for _ in range(3):
            async with session.get(f"{api.url}/users/connect/new") as answer:
                statuses.append(answer.status)
                text = await answer.text()
        assert statuses == [400, 400, 429]
        assert "<p>Too many requests.</p>" in text
