"""From settings to a connection: what tconsume and tpublish have in common."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tstack.cli import settings
from tstack.client import Options
from tstack.device import CA, SETTINGS, Device, folder_to_read
from tstack.env import Setting, Values

log = logging.getLogger("tstack.cli")

_IGNORED = (
    settings.MQTT_URL, settings.USERNAME, settings.PASSWORD, settings.CA_CRT_FILE, settings.TLS_CERT_FILE,
    settings.TLS_KEY_FILE, settings.VERIFY_TLS,
)  # fmt: skip


def options(values: Values, use_config: Setting[bool]) -> Options:
    """Broker, user and TLS from `settings.yml` or from the flags, as `use_config` says.

    Where only its default says `settings.yml`, -mqtturl is enough to do without one. Raises `Failure` when `settings.yml` is
    to be used and cannot be.
    """
    folder = folder_to_read(values[settings.CONFIG_DIR], values.given(settings.CONFIG_DIR))
    unsaid = not values.given(use_config) and values.given(settings.MQTT_URL)
    if values[use_config] and not (unsaid and not os.access(folder / SETTINGS, os.F_OK)):
        return _from_device(values, folder)
    return _from_flags(values, folder)


def _from_device(values: Values, folder: Path) -> Options:
    device = Device.load(folder)
    ignored = [f"-{setting.flag}" for setting in _IGNORED if values.given(setting)]
    if ignored:
        log.warning("%s is used, %s are not: -useconfig=false uses them", folder / SETTINGS, ", ".join(ignored))
    return Options(
        url=device.broker, username=device.username, password=device.password, ca_file=device.ca_file,
        cert_file=device.cert_file, key_file=device.key_file, verify=device.verify_tls,
    )  # fmt: skip


def _from_flags(values: Values, folder: Path) -> Options:
    ca_file = values[settings.CA_CRT_FILE]
    if not ca_file and os.access(folder / CA, os.F_OK):
        ca_file = str(folder / CA)
    return Options(
        url=values[settings.MQTT_URL], username=values[settings.USERNAME], password=values[settings.PASSWORD],
        ca_file=ca_file, cert_file=values[settings.TLS_CERT_FILE], key_file=values[settings.TLS_KEY_FILE],
        verify=values[settings.VERIFY_TLS],
    )  # fmt: skip


def topic(values: Values, options: Options) -> str:
    """-topic, with `{username}` in it replaced by the user's name: so one line serves every device."""
    return values[settings.TOPIC].replace("{username}", options.username)
