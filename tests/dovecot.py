"""A real Dovecot for a test: IMAP, plain and TLS, and LMTP, on free ports of 127.0.0.1, with a folder and settings of its own.

Every user name exists, each with the same password.
"""

from __future__ import annotations

import getpass
import grp
import imaplib
import os
import pwd
import shutil
import smtplib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.mosquitto import ServerTls
from tests.processes import PATIENCE, Running, free_port, lacking, need, wait_for_port

_CONFIG = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
protocols = {protocols}
listen = 127.0.0.1
default_internal_user = {internal}
default_login_user = {login}
default_internal_group = {internal_group}
first_valid_uid = 0
first_valid_gid = 0
mail_uid = {internal}
mail_gid = {internal_group}
mail_location = maildir:{folder}/mail/%u
mail_max_userip_connections = {per_user}
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
{oauth}
passdb {{
  driver = static
  mechanisms = plain login
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={internal} gid={internal_group} home={folder}/home/%u allow_all_users=yes
}}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Verschickt {{
    special_use = \\Sent
    auto = create
  }}
}}
auth_failure_delay = 0
service anvil {{
  chroot =
  client_limit = 20000
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  client_limit = 20000
}}
service imap-login {{
  chroot =
  client_limit = 5000
  process_limit = 1
  process_min_avail = 1
  service_count = 0
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
    ssl = {ssl}
  }}
}}
service imap {{
  client_limit = 100
  process_limit = 200
  service_count = 0
}}
{lmtp}
service stats {{
  unix_listener stats-reader {{
    mode = 0600
  }}
}}
ssl = {ssl}
{tls}
{extra}
"""


_LMTP = """
postmaster_address = postmaster@example.org
hostname = localhost
service lmtp {{
  user = {internal}
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


class Dovecot:
    """One server. `capability` replaces what it says that it can do, so that a client does without the rest.

    With `mechanisms` such as "oauthbearer" it takes access tokens, and asks at `tokeninfo` (a URL, up to the token) whose they
    are. With `lmtp`, `hand_over` delivers as a mail server of the site would. `per_user`: connections of one user at once.
    """

    def __init__(
        self,
        *,
        password: str = "secret",
        tls: ServerTls | None = None,
        capability: str = "",
        mechanisms: str = "",
        tokeninfo: str = "",
        lmtp: bool = False,
        per_user: int = 10000,
    ) -> None:
        self._program = need("dovecot")
        if lmtp and not any(Path(folder, "dovecot/lmtp").exists() for folder in ("/usr/lib", "/usr/libexec")):
            lacking("Dovecot's LMTP is not installed")
        self._folder = folder = Path(tempfile.mkdtemp(prefix="dovecot-"))  # a test's own may be closed to others
        self.password = password
        self.port, self.tls_port, self.lmtp_port = free_port(), free_port(), free_port()
        account = pwd.getpwuid(os.getuid())
        for name in ("run", "state", "mail", "home"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        extra = f"imap_capability = {capability}\n" if capability else ""
        (folder / "oauth2.conf").write_text(f"tokeninfo_url = {tokeninfo}\nusername_attribute = email\n")
        oauth = f"passdb {{\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = {folder}/oauth2.conf\n}}"
        certificates = f"ssl_cert = <{tls.cert}\nssl_key = <{tls.key}\n" if tls else ""
        self._config = folder / "dovecot.conf"
        root = os.getuid() == 0  # then it wants users of its own for what strangers talk to
        if root:
            folder.chmod(0o755)
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, "dovecot", "dovecot")
        own, group = getpass.getuser(), grp.getgrgid(account.pw_gid).gr_name
        internal = "dovecot" if root else own
        self._config.write_text(
            _CONFIG.format(
                folder=folder,
                protocols="imap lmtp" if lmtp else "imap",
                lmtp=_LMTP.format(port=self.lmtp_port, internal=internal) if lmtp else "",
                per_user=per_user,
                internal=internal,
                internal_group="dovecot" if root else group,
                login="dovenull" if root else own,
                port=self.port,
                tls_port=self.tls_port if tls else 0,
                ssl="yes" if tls else "no",
                tls=certificates,
                extra=extra,
                password=password,
                mechanisms=f"plain login {mechanisms}",
                oauth=oauth if tokeninfo else "",
            )
        )
        self._running: Running | None = None

    def start(self) -> Self:
        """Start it; when this returns it takes connections."""
        self._running = Running([self._program, "-F", "-c", self._config])
        wait_for_port(self.port)
        return self

    def stop(self) -> None:
        """Stop it in order; all connections end."""
        assert self._running is not None
        self._running.stop()
        self._running.__exit__(None, None, None)

    def kill(self) -> None:
        """End it at once."""
        assert self._running is not None
        self._running.kill()
        self._running.__exit__(None, None, None)

    @property
    def output(self) -> str:
        """What it has logged."""
        return self._running.output if self._running else ""

    def login(self, user: str = "bob") -> imaplib.IMAP4:
        """A connection of Python's own client, to deliver and to look with."""
        client = imaplib.IMAP4("127.0.0.1", self.port)
        client.login(user, self.password)
        return client

    def deliver(self, *mails: bytes, user: str = "bob", folder: str = "INBOX") -> None:
        """Append mails to a folder, which is made when it is not there."""
        client = self.login(user)
        try:
            client.create(folder)
            for mail in mails:
                status, answer = client.append(folder, "", "", mail)
                assert status == "OK", answer
        finally:
            client.logout()

    def hand_over(self, mail: bytes, user: str = "bob") -> None:
        """Deliver a mail to the inbox by LMTP (RFC 2033): when this returns, it is there."""
        with smtplib.LMTP("127.0.0.1", self.lmtp_port, timeout=PATIENCE) as client:
            assert client.sendmail("sender@example.org", [user], mail) == {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            self._running.__exit__(kind, error, trace)
        shutil.rmtree(self._folder, ignore_errors=True)
