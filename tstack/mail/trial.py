"""A login that is only tried: is a mailbox what somebody says it is? And if not, what is wrong, in words for a person."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from tstack.mail.classify import classify
from tstack.mail.connection import ImapConnection, Lost, Refused, Where
from tstack.mail.imap import commands
from tstack.mail.mailbox import CannotLogIn, Credentials

SECONDS: Final = 30.0
"""For a trial as a whole: a person waits for it."""

_LOST: Final = {
    "connect": "The mail server cannot be reached.",
    "tls": "There is no safe connection to the mail server.",
    "timeout": "The mail server did not answer in time.",
}


async def login_fault(where: Where, credentials: Credentials, context: ssl.SSLContext | None = None) -> str | None:
    """Log in and open the inbox: None when that works, else what is wrong. `context` as for `ImapConnection.open`."""
    connection = ImapConnection(lambda response: None)
    try:
        async with asyncio.timeout(SECONDS):
            await connection.open(where, context)
            command = await credentials.command(await connection.capabilities(), where, fresh=False)
            await connection.run(command)
            await connection.run(commands.examine(b"INBOX"))
            await connection.close()
    except Refused as refused:
        login = refused.command != "EXAMINE"
        verdict = classify(refused.status, login=login)
        if verdict.trouble == "auth":
            return f"The mail server does not accept this name and password.{_said(refused.said)}"
        return f"The mail server does not let us in at the moment.{_said(refused.said)}"
    except Lost as lost:
        detail = _said(str(lost)) if lost.kind == "tls" else ""
        return _LOST.get(lost.kind, "The mail server does not speak IMAP as it should.") + detail
    except CannotLogIn as error:
        return f"There is no way to log in.{_said(str(error))}"
    except TimeoutError:
        return _LOST["timeout"]
    finally:
        connection.abort()
    return None


def _said(text: str) -> str:
    shown = "".join(one if one.isprintable() else " " for one in text[:300]).strip()
    return f" It says: {shown}" if shown else ""
