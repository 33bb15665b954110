"""Every setting of every program, declared once. `python -m tstack.cli.settings` prints `env.dist` from it."""

from __future__ import annotations

import textwrap
from typing import Any

from tstack.cli.limits import limits
from tstack.env import (
    CONFIG,
    Setting,
    addresses,
    boolean,
    choice,
    filters,
    integer,
    networks,
    octal,
    pairs,
    port,
    seconds,
    size,
    user_networks,
    words,
)

# -- the store --------------------------------------------------------------------------------------------------------

ETCD_HOSTS = Setting(
    "etcdhosts",
    "ETCD_HOSTS",
    words,
    "",
    "etcd endpoints, as in 'http://etcd0:2379 https://etcd1:2379'; blank: the embedded store in the data directory",
)
ETCD_CA_FILE = Setting("etcdcafile", "ETCD_CA_FILE", str, "", "CA certificate that etcd's certificate is checked with")
ETCD_CERT_FILE = Setting("etcdcertfile", "ETCD_CERT_FILE", str, "", "client certificate to show to etcd")
ETCD_KEY_FILE = Setting("etcdkeyfile", "ETCD_KEY_FILE", str, "", "private key of that client certificate")
ETCD_USERNAME = Setting("etcdusername", "ETCD_USERNAME", str, "", "etcd user (needs https endpoints)")
ETCD_PASSWORD = Setting("etcdpassword", "ETCD_PASSWORD", str, "", "etcd user's password", secret=True)
DATA_DIR = Setting(
    "data-dir", "TSTACK_DATA_DIR", str, "var", "folder of the embedded store and of what is made at first start"
)
STORE_WAIT = Setting(
    "store-wait", "TSTACK_STORE_WAIT", seconds, "60s", "how long a program waits for the store when it starts"
)
STORE = (
    ETCD_HOSTS, ETCD_CA_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD, DATA_DIR, STORE_WAIT
)  # fmt: skip

# -- certificates -----------------------------------------------------------------------------------------------------

CERTS_DIR = Setting(
    "certs-dir", "TSTACK_CERTS_DIR", str, "certs", "folder where CA and server certificate are made when there are none"
)
CERT_FILE = Setting("certfile", "TSTACK_CERT_FILE", str, "", "server certificate; blank: mqtt.crt in the certs folder")
KEY_FILE = Setting("keyfile", "TSTACK_KEY_FILE", str, "", "private key of it; blank: mqtt.key in the certs folder")
CA_FILE = Setting(
    "cafile", "TSTACK_CA_FILE", str, "", "CA that client certificates must come from; blank: ca.crt in the certs folder"
)
BROKER_NAME = Setting(
    "hostname", "BROKER_NAME", words, "",
    "names and addresses that devices reach the broker by; the server certificate that is made carries them beside "
    "localhost and this machine's name",
)  # fmt: skip
CERTIFICATES = (CERTS_DIR, CERT_FILE, KEY_FILE, CA_FILE, BROKER_NAME)

# -- logging ----------------------------------------------------------------------------------------------------------

LOG_LEVEL = Setting(
    "loglevel", "TSTACK_LOG_LEVEL", choice("debug", "info", "warning", "error"), "info", "what is logged"
)
LOG_FORMAT = Setting("logformat", "TSTACK_LOG_FORMAT", choice("text", "json"), "text", "how it is logged")
LOGGING = (LOG_LEVEL, LOG_FORMAT)

# -- tserve -----------------------------------------------------------------------------------------------------------

ADDR = Setting("addr", "TSTACK_ADDR", addresses, "127.0.0.1:1883", "plain TCP listeners; blank: none")
ADDR_TLS = Setting("addrTls", "TSTACK_ADDR_TLS", addresses, "0.0.0.0:8883", "TLS listeners; blank: none")
ADDR_ADMIN = Setting(
    "addrAdmin",
    "TSTACK_ADDR_ADMIN",
    addresses,
    "127.0.0.1:9883",
    "listeners for /healthz, /readyz and /metrics; blank: none",
)
ADDR_WS = Setting("addrWs", "TSTACK_ADDR_WS", addresses, "", "WebSocket listeners (path /mqtt); blank: none")
ADDR_WSS = Setting("addrWss", "TSTACK_ADDR_WSS", addresses, "", "secure WebSocket listeners (path /mqtt); blank: none")
ADDR_UNIX = Setting("addrUnix", "TSTACK_ADDR_UNIX", str, "", "path of a Unix socket to listen on; blank: none")
UNIX_MODE = Setting(
    "unixmode", "TSTACK_UNIX_MODE", octal, "0660", "mode of that socket: who may write to it may connect"
)
ORIGINS = Setting(
    "origins", "TSTACK_ORIGINS", words, "",
    "origins of web pages that may connect by WebSocket, as in 'https://app.example.org'; *: all; pages of the broker's own "
    "host and clients that are no browsers always may",
)  # fmt: skip
PROXY_PROTOCOL = Setting(
    "proxyprotocol", "TSTACK_PROXY_PROTOCOL", words, "",
    "listeners (of mqtt, mqtts, ws, wss, unix) whose connections come from proxies, and begin with a PROXY protocol header, "
    "version 1 or 2; all others are refused there",
)  # fmt: skip
TRUST_PROXIES = Setting(
    "trustproxies", "TSTACK_TRUST_PROXIES", networks, "",
    "addresses and networks of those proxies, as in '10.0.0.0/8 ::1'",
)  # fmt: skip
CRL_FILE = Setting(
    "crlfile", "TSTACK_CRL_FILE", str, "",
    "certificate revocation lists in PEM that client certificates are checked against, beside what tuser has revoked",
)  # fmt: skip
SNI_CERTIFICATES = Setting(
    "snicerts", "TSTACK_SNI_CERTIFICATES", pairs, "",
    "further server certificates, as in 'a.crt:a.key b.crt:b.key', for clients that ask for a name in one of them",
)  # fmt: skip
AUTHENTICATION = Setting(
    "authentication", "TSTACK_AUTHENTICATION", boolean, "true",
    "false lets everybody in with every right (but $-topics): for tests on a closed machine only",
)  # fmt: skip
CLIENT_CERTIFICATE = Setting(
    "clientcert", "TSTACK_CLIENT_CERTIFICATE", choice("optional", "required", "off"), "optional",
    "on TLS listeners: optional takes a certificate or a password, required demands a certificate",
)  # fmt: skip
DURABILITY = Setting(
    "durability", "TSTACK_DURABILITY", choice("commit", "interval", "none"), "commit",
    "what persistent sessions and their messages survive: commit: a loss of power, nothing is acknowledged before it is on "
    "disk; interval: kill -9, a loss of power costs a second; none: they live in memory",
)  # fmt: skip

LIMITS = Setting(
    "limit", "TSTACK_LIMITS", limits, "",
    "limits that differ from their defaults, as in 'packet=256KiB message_rate=100'; the flag may be given several times; "
    "docs/limits.md lists them all",
    several=True,
)  # fmt: skip
TRUSTED_NETWORKS = Setting(
    "trusted", "TSTACK_TRUSTED_NETWORKS", networks, "127.0.0.0/8 ::1",
    "addresses and networks that no limit per address holds for and that the broker never bans by itself",
)  # fmt: skip
SYS_INTERVAL = Setting(
    "sysinterval", "TSTACK_SYS_INTERVAL", seconds, "10s",
    "how often what has changed under $SYS/broker/ is published, while somebody subscribes to it; 0: never",
)  # fmt: skip

# -- treg -------------------------------------------------------------------------------------------------------------

REG_KEY = Setting("regkey", "REGISTRATION_KEY", str, "", "the key that a device shows to register", secret=True)
MQTT_URL = Setting(
    "mqtturl",
    "BROKER_URL",
    str,
    "tcp://localhost:1883",
    "broker URL: tcp:// or mqtt:// is plain, ssl:// or mqtts:// is TLS; tstack up names its own listener when it is blank",
)
REG_HOST = Setting("host", "TREG_HOST", str, "127.0.0.1", "address that the registration service listens on")
REG_PORT = Setting("port", "TREG_PORT", port, "8000", "port that the registration service listens on")
CA_CERT_FILE = Setting(
    "cacertfile", "TREG_CA_CERT_FILE", str, "",
    "PEM file that devices get as Ca; blank: ca.crt in the certs folder",
)  # fmt: skip
REG_CERT_FILE = Setting("regcertfile", "TREG_CERT_FILE", str, "", "certificate for https; blank: plain http")
REG_KEY_FILE = Setting("regkeyfile", "TREG_KEY_FILE", str, "", "private key for https")
REG_BURST = Setting("burst", "TREG_BURST", integer(1, 1_000_000), "5", "registrations that one client may do at once")
REG_EVERY = Setting("every", "TREG_EVERY", seconds, "20s", "time after which a client may do one more")
REG_KEY_RATE = Setting(
    "keyrate", "TREG_KEY_RATE", integer(0, 1_000_000), "2000",
    "registrations a second with one registration key, and as many at once; 0: no limit",
)  # fmt: skip
REG_RATE = Setting(
    "rate", "TREG_RATE", integer(0, 1_000_000), "4000",
    "requests to register a second in all, and as many at once; 0: no limit",
)  # fmt: skip
REG_PROXIES = Setting(
    "proxies", "TREG_PROXIES", words, "", "addresses or networks of proxies whose X-Forwarded-For is believed"
)
NAME_HOLD = Setting(
    "namehold", "TREG_NAME_HOLD", seconds, "400d",
    "how long a deleted device's name is given to no other, longer than its certificates are valid; 0: for ever",
)  # fmt: skip
REG_CLIENT_CERT_HEADER = Setting(
    "clientcertheader", "TREG_CLIENT_CERT_HEADER", str, "",
    "header in which those proxies say which client certificate they have checked, as in Client-Cert (RFC 9440); they must "
    "take it away from what clients send; blank: client certificates come by TLS of treg's own only",
)  # fmt: skip
AUDIT_LOG = Setting(
    "auditlog", "TREG_AUDIT_LOG", str, "", "file that what is done and refused is added to as JSON lines; blank: none"
)
REG_VALIDITY = Setting("validity", "TREG_VALIDITY", seconds, "365d", "how long a device's certificate is valid")

SEAL_KEY = Setting(
    "sealkey", "TSTACK_SEAL_KEY", str, "",
    "keys that secrets in the store are sealed with, as the file seal.key holds them; blank: seal.key in the certs folder, "
    "which is made when there is none",
    secret=True,
)  # fmt: skip

# -- clients: tregister, tconsume, tpublish ---------------------------------------------------------------------------

REG_SERVICE = Setting(
    "regservice", "TREG_URL", str, "http://localhost:8000/register.json", "URL of the registration service"
)
REG_CA_FILE = Setting(
    "regcafile",
    "TREGISTER_CA_FILE",
    str,
    "",
    "CA of a registration service with https; blank: those that the system trusts",
)
REG_WAIT = Setting(
    "wait", "TREGISTER_WAIT", seconds, "2m", "how long tregister keeps trying while the service is away or busy"
)
DEVICE_TYPE = Setting("devtype", "TSTACK_DEVICE_TYPE", str, "unknown", "what kind of device this is")
VERIFY_TLS = Setting("verifytls", "TSTACK_VERIFY_TLS", boolean, "true", "check the broker's certificate and name")
CONFIG_DIR = Setting("config-dir", "TSTACK_CONFIG_DIR", str, "/etc/trafero", "folder of settings.yml and certificates")
_USE_CONFIG = "true: take broker, user and certificates from settings.yml; false: from the flags"
CONSUME_USE_CONFIG = Setting("useconfig", "TCONSUME_USE_CONFIG", boolean, "false", _USE_CONFIG)
PUBLISH_USE_CONFIG = Setting(
    "useconfig", "TPUBLISH_USE_CONFIG", boolean, "true", f"{_USE_CONFIG}; with -mqtturl only if there is one"
)
USERNAME = Setting("username", "TSTACK_USERNAME", str, "", "user name")
PASSWORD = Setting("password", "TSTACK_PASSWORD", str, "", "password", secret=True)
CA_CRT_FILE = Setting(
    "cacrtfile", "TSTACK_CA_CRT_FILE", str, "", "CA of the broker; blank: ca.crt in the config folder"
)
TLS_CERT_FILE = Setting("tlscertfile", "TSTACK_TLS_CERT_FILE", str, "", "client certificate to show to the broker")
TLS_KEY_FILE = Setting("tlskeyfile", "TSTACK_TLS_KEY_FILE", str, "", "private key of that client certificate")
CLIENT = (
    MQTT_URL, USERNAME, PASSWORD, CA_CRT_FILE, TLS_CERT_FILE, TLS_KEY_FILE, VERIFY_TLS, CONFIG_DIR
)  # fmt: skip

TOPIC = Setting(
    "topic",
    "TSTACK_TOPIC",
    str,
    "",
    "topic (tpublish) or topic filter (tconsume; blank: USERNAME/#); {username} in it stands for the user name",
)
CONSUME_TYPE = Setting(
    "ctype", "TCONSUME_TYPE", choice("", "stdout", "graphite", "influxdb"), "", "where to: stdout, graphite or influxdb"
)
GRAPHITE_HOST = Setting("graphitehost", "GRAPHITE_HOST", str, "localhost", "host of Graphite's line receiver")
GRAPHITE_PORT = Setting("graphiteport", "GRAPHITE_PORT", integer(1, 65535), "2003", "port of Graphite's line receiver")
INFLUX_HOST = Setting("influxhost", "INFLUX_HOST", str, "localhost", "host of InfluxDB")
INFLUX_PORT = Setting("influxport", "INFLUX_PORT", integer(1, 65535), "8086", "port of InfluxDB")
INFLUX_DATABASE = Setting("influxdatabase", "INFLUX_DATABASE", str, "device", "database, made when it is not there")
CLIENT_ID = Setting(
    "clientid", "TCONSUME_CLIENT_ID", str, "",
    "MQTT client identifier, under which the broker keeps what comes in between two runs; "
    "blank: made from user, host, -ctype and -topic",
)  # fmt: skip
JSON_LINES = Setting("json", "TCONSUME_JSON", boolean, "false", "stdout: a JSON object a line instead of CSV")
COUNT = Setting("count", "TCONSUME_COUNT", integer(0, 1_000_000_000), "0", "end after this many messages; 0: never")
SINK = (
    CONSUME_TYPE, TOPIC, CLIENT_ID, JSON_LINES, COUNT, GRAPHITE_HOST, GRAPHITE_PORT, INFLUX_HOST, INFLUX_PORT,
    INFLUX_DATABASE,
)  # fmt: skip

PAYLOAD = Setting("payload", "TPUBLISH_PAYLOAD", str, "", "what to publish; - reads it from standard input")
QOS = Setting(
    "qos",
    "TPUBLISH_QOS",
    integer(0, 2),
    "1",
    "1 and 2: the exit code 0 says that the broker has the message; 0: it may be lost",
)
RETAIN = Setting("retain", "TPUBLISH_RETAIN", boolean, "false", "let the broker keep it for whoever subscribes later")
PUBLISH_WAIT = Setting("wait", "TPUBLISH_WAIT", seconds, "30s", "how long the broker has to confirm the message")

# -- mail in by SMTP and LMTP -----------------------------------------------------------------------------------------

SMTP_ADDR = Setting(
    "smtpaddr", "TSTACK_SMTP_ADDR", addresses, "127.0.0.1:2525",
    "listeners for mail by SMTP, which becomes events; blank: none",
)  # fmt: skip
LMTP_ADDR = Setting(
    "lmtpaddr", "TSTACK_LMTP_ADDR", addresses, "",
    "listeners for mail by LMTP, from a mail server of yours; blank: none",
)  # fmt: skip
SMTP_OPEN = Setting(
    "smtpopen", "TSTACK_SMTP_OPEN", user_networks, "",
    "whose mail is taken from where without a login, as in 'acme@192.168.1.0/24 lab@127.0.0.1'; * is every user",
)  # fmt: skip
SMTP_SIZE = Setting("smtpsize", "TSTACK_SMTP_SIZE", size, "10MiB", "bytes of a mail at most")
SMTP_RAW = Setting(
    "smtpraw", "TSTACK_SMTP_RAW", choice("needed", "always", "never"), "needed",
    "which mails are kept whole, for the link in their event: those that the event does not tell all of, all, or none",
)  # fmt: skip
BLOB_ADDR = Setting(
    "blobaddr", "TSTACK_BLOB_ADDR", addresses, "127.0.0.1:8026",
    "listener that kept mails are fetched from; blank: of mail in none are kept",
)  # fmt: skip
BLOB_URL = Setting(
    "bloburl", "TSTACK_BLOB_URL", str, "",
    "what links to kept mails begin with, when a proxy stands before the listener that serves them; blank: its own address",
)  # fmt: skip
BLOB_KEEP = Setting("blobkeep", "TSTACK_BLOB_KEEP", seconds, "7d", "how long a mail is kept")
BLOB_SIZE = Setting("blobsize", "TSTACK_BLOB_SIZE", size, "1GiB", "bytes of all kept mails; above it the oldest go")
S3_URL = Setting(
    "s3url", "TSTACK_S3_URL", str, "",
    "S3 bucket to keep mails in, as in 'https://BUCKET.s3.REGION.amazonaws.com/mails'; blank: in the data directory",
)  # fmt: skip
S3_REGION = Setting("s3region", "TSTACK_S3_REGION", str, "us-east-1", "region of that bucket")
S3_KEY = Setting("s3key", "TSTACK_S3_KEY", str, "", "access key of that bucket")
S3_SECRET = Setting("s3secret", "TSTACK_S3_SECRET", str, "", "secret of that access key", secret=True)
MAIL_KEPT = (BLOB_URL, BLOB_KEEP, BLOB_SIZE, S3_URL, S3_REGION, S3_KEY, S3_SECRET)
MAIL_IN = (SMTP_ADDR, LMTP_ADDR, SMTP_OPEN, SMTP_SIZE, SMTP_RAW, BLOB_ADDR, *MAIL_KEPT)

# -- tmail ------------------------------------------------------------------------------------------------------------

MAIL_ADMIN = Setting(
    "mailadmin", "TMAIL_ADDR_ADMIN", addresses, "127.0.0.1:9885",
    "listeners for /healthz, /readyz, /metrics and the state of mailboxes, which tmail status asks; blank: none",
)  # fmt: skip
MAIL_CAPACITY = Setting(
    "mailboxes", "TMAIL_MAILBOXES", integer(0, 1_000_000), "10000",
    "mailboxes that this process watches at most; what is over goes to other watchers",
)  # fmt: skip
MAIL_WEIGHT = Setting(
    "weight", "TMAIL_WEIGHT", integer(1, 1000), "10", "this process's share of the mailboxes beside that of others"
)
MAIL_LEASE = Setting(
    "mail-lease", "TMAIL_LEASE", seconds, "15s", "time after which the mailboxes of a watcher that is gone go to others"
)
MAIL_EXPIRY = Setting(
    "mailexpiry", "TMAIL_EXPIRY", seconds, "7d",
    "time until an event of a mail is of no use to those who are away, for brokers and clients of MQTT 5.0; 0: it has no end",
)  # fmt: skip
MAIL_CA_FILE = Setting(
    "imapcafile", "TMAIL_CA_FILE", str, "", "CA of mail servers, beside those that the system trusts"
)
MAIL_HOST_CONNECTIONS = Setting(
    "hostconnections", "TMAIL_HOST_CONNECTIONS", integer(1, 1_000_000), "10000",
    "connections of this process to one mail server at most; large providers have fewer (docs/mail.md)",
)  # fmt: skip
MAIL_HOST_LOGINS = Setting(
    "hostlogins", "TMAIL_HOST_LOGINS", integer(1, 10_000), "200",
    "logins a second on one mail server at most, of mailboxes that have been connected before; large providers have fewer",
)  # fmt: skip
MAIL_PASSWORD = Setting(
    "password", "TMAIL_PASSWORD", str, "", "the mailbox's password, or its OAuth refresh token; - reads it from standard input",
    secret=True,
)  # fmt: skip
MAIL_API = Setting(
    "mailapi", "TMAIL_API_ADDR", addresses, "127.0.0.1:8027",
    "listeners of the partners' API and of the pages where a mailbox's owner connects it; blank: none",
)  # fmt: skip
MAIL_API_URL = Setting(
    "mailapiurl", "TMAIL_API_URL", str, "",
    "how browsers reach that API, as in 'https://mail.example.com', when a proxy stands before it; blank: its own address",
)  # fmt: skip
MAIL_API_CERT_FILE = Setting(
    "mailapicertfile",
    "TMAIL_API_CERT_FILE",
    str,
    "",
    "certificate for https of that API; blank: plain http, for a proxy",
)
MAIL_API_KEY_FILE = Setting("mailapikeyfile", "TMAIL_API_KEY_FILE", str, "", "private key of that certificate")
MAIL_API_PROXIES = Setting(
    "mailapiproxies", "TMAIL_API_PROXIES", networks, "",
    "addresses and networks of proxies before that API whose X-Forwarded-For is believed",
)  # fmt: skip
MAIL_API_LOCAL = Setting(
    "mailapilocal", "TMAIL_API_LOCAL", boolean, "false",
    "may partners name mail servers, webhooks and others of this machine and its private network? Who has an API key could "
    "look around there",
)  # fmt: skip
TRACER_INTERVAL = Setting(
    "tracer-interval", "TRACER_INTERVAL", seconds, "10m",
    "how often this process sends tracers to one of its mailboxes that take them, at least 1s; 0: never",
)  # fmt: skip
NUM_TRACERS = Setting("tracers", "NUM_TRACERS", integer(0, 100), "3", "how many tracers it sends each time")
MAIL_USERS = Setting(
    "mailusers", "TMAIL_USERS", integer(0, 10_000_000), "10000",
    "users that a partner may make by the API, archived ones too; 0: no bound",
)  # fmt: skip
MAIL_CONNECTIONS = Setting(
    "mailconnections", "TMAIL_CONNECTIONS", integer(0, 1_000_000), "100",
    "connections that a partner may make by the API; 0: no bound",
)  # fmt: skip
MAIL_WATCH = (
    MAIL_ADMIN, MAIL_CAPACITY, MAIL_WEIGHT, MAIL_LEASE, MAIL_CA_FILE, MAIL_HOST_CONNECTIONS, MAIL_HOST_LOGINS, MAIL_EXPIRY,
    TRACER_INTERVAL, NUM_TRACERS, MAIL_API, MAIL_API_URL, MAIL_API_CERT_FILE, MAIL_API_KEY_FILE, MAIL_API_PROXIES,
    MAIL_API_LOCAL, MAIL_USERS, MAIL_CONNECTIONS, SEAL_KEY, *MAIL_KEPT,
)  # fmt: skip

# -- tuser ------------------------------------------------------------------------------------------------------------

# Names of its own, so that what a client is set to use is not what an administrator overwrites by accident.
USER_NAME = Setting("username", "TUSER_USERNAME", str, "", "user to create, change or show")
USER_PASSWORD = Setting(
    "password", "TUSER_PASSWORD", str, "", "its password; - reads it from standard input", secret=True
)  # fmt: skip
RIGHTS = Setting(
    "rights", "TUSER_RIGHTS", filters, "", "topic filters that the user may publish and subscribe to, with spaces between"
)  # fmt: skip

# -- tstack top -------------------------------------------------------------------------------------------------------

ADMIN_URL = Setting("url", "TSTACK_ADMIN_URL", str, "http://127.0.0.1:9883", "admin listener of the broker to look at")

# -- by program -------------------------------------------------------------------------------------------------------

TSERVE: tuple[Setting[Any], ...] = (
    ADDR, ADDR_TLS, ADDR_ADMIN, AUTHENTICATION, CLIENT_CERTIFICATE, DURABILITY, LIMITS, TRUSTED_NETWORKS, SYS_INTERVAL,
    ADDR_WS, ADDR_WSS, ADDR_UNIX, UNIX_MODE, ORIGINS, PROXY_PROTOCOL, TRUST_PROXIES, CRL_FILE, SNI_CERTIFICATES,
    *CERTIFICATES, *STORE, *LOGGING,
)  # fmt: skip
TREG: tuple[Setting[Any], ...] = (
    REG_KEY, MQTT_URL, REG_HOST, REG_PORT, CA_CERT_FILE, REG_CERT_FILE, REG_KEY_FILE, REG_BURST, REG_EVERY,
    REG_KEY_RATE, REG_RATE, REG_PROXIES, REG_CLIENT_CERT_HEADER, REG_VALIDITY, NAME_HOLD, AUDIT_LOG, SEAL_KEY, CERTS_DIR,
    *STORE, *LOGGING,
)  # fmt: skip
TREGISTER: tuple[Setting[Any], ...] = (
    REG_KEY, REG_SERVICE, REG_CA_FILE, REG_WAIT, DEVICE_TYPE, VERIFY_TLS, CONFIG_DIR
)  # fmt: skip
TCONSUME: tuple[Setting[Any], ...] = (*SINK, CONSUME_USE_CONFIG, *CLIENT, *LOGGING)
TPUBLISH: tuple[Setting[Any], ...] = (TOPIC, PAYLOAD, QOS, RETAIN, PUBLISH_WAIT, PUBLISH_USE_CONFIG, *CLIENT, *LOGGING)
TUSER: tuple[Setting[Any], ...] = (USER_NAME, USER_PASSWORD, RIGHTS, *STORE, *LOGGING)
TUSER_KEY: tuple[Setting[Any], ...] = (REG_KEY, SEAL_KEY, CERTS_DIR, *STORE, *LOGGING)
"""Of `tuser key`, in place of those."""

TMAIL: tuple[Setting[Any], ...] = (
    MQTT_URL, USERNAME, PASSWORD, CA_CRT_FILE, TLS_CERT_FILE, TLS_KEY_FILE, VERIFY_TLS, *MAIL_WATCH, CERTS_DIR, *STORE,
    *LOGGING,
)  # fmt: skip

TOP: tuple[Setting[Any], ...] = (ADMIN_URL,)
UP: tuple[Setting[Any], ...] = tuple(dict.fromkeys((*TSERVE, *TREG, *MAIL_WATCH, *MAIL_IN)))
"""What `tstack up` and `tstack doctor` can be told: all of the services'."""

UP_DEFAULTS: dict[Setting[Any], str] = {ADDR_TLS: "127.0.0.1:8883", MQTT_URL: "", MAIL_ADMIN: "127.0.0.1:0"}
"""What is for one machine listens on that machine alone, and devices are told of its own listener."""

PROGRAMS: dict[str, tuple[Setting[Any], ...]] = {
    "tserve": TSERVE, "treg": TREG, "tregister": TREGISTER, "tconsume": TCONSUME, "tpublish": TPUBLISH, "tuser": TUSER,
    "tuser key": TUSER_KEY,
    "tmail": TMAIL, "tmail user": (MAIL_PASSWORD,),
    "tstack top": TOP, "tstack up": MAIL_IN,
}  # fmt: skip


COMPOSE: dict[str, tuple[str, str]] = {
    "PUBLISH_ADDRESS": (
        "127.0.0.1",
        "where port 8883 is open; 127.0.0.1: to this machine alone; 0.0.0.0: to everybody, so change the secrets first",
    ),
    REG_KEY.env: ("PLEASE_CHANGE_ME_TOO", f"{REG_KEY.help} (-regkey of treg, tregister)"),
    "CONSUMER_USERNAME": ("consumer", "a user that may read everything, made for consumers such as tconsume"),
    "CONSUMER_PASSWORD": ("PLEASE_CHANGE_ME", "that user's password"),
    BROKER_NAME.env: ("localhost", f"{BROKER_NAME.help} (-hostname of tserve)"),
    MQTT_URL.env: ("ssl://localhost:8883", f"{MQTT_URL.help} (-mqtturl of treg, tconsume, tpublish)"),
}
"""What docker-compose.yml takes from `.env`, with the value that it has in `env.dist`."""


def everything() -> tuple[Setting[Any], ...]:
    """Every setting of every program, once."""
    return tuple(dict.fromkeys(setting for program in PROGRAMS.values() for setting in program))


def env_dist() -> str:
    """The text of `env.dist`: every setting once, with what it is for, its default and the programs that read it."""
    lines = ["# Copy to .env and change what you need. A secret can also be given as a file: NAME_FILE=/run/secrets/name.", "",
             "# -- what docker-compose.yml takes from here; it gives its services the rest itself --"]  # fmt: skip
    for name, (value, help_) in COMPOSE.items():
        lines += ["", *_comment(help_), f"{name}={value}"]
    lines += ["", "# -- all other settings, with their defaults --"]
    for setting in (*everything(), CONFIG):
        if setting.env not in COMPOSE:
            readers = [program for program, those in PROGRAMS.items() if setting in those] or ["every program"]
            lines += ["", *_comment(f"{setting.help} (-{setting.flag} of {', '.join(readers)})")]
            lines.append(f"#{setting.env}={setting.default}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


if __name__ == "__main__":
    print(env_dist(), end="")
