"""The benchmark of the mail watchers runs, small, and its table and page say what was measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench import mail_cut, mail_figures, mail_memory, mail_rates, mail_share, mail_watch, report
from tests.bench.mail_figures import Figure, beside
from tests.processes import module, need


@pytest.fixture(autouse=True)
def _services() -> None:
    need("etcd")
    need("etcdctl")
    module("paho.mqtt")


def test_memory_is_measured_beside_another_client(tmp_path: Path) -> None:
    figures = list(mail_memory.memory(tmp_path, quick=True))
    assert [figure.unit for figure in figures] == ["KiB"] * 4
    plain, peer, tls, tls_peer = (figure.value or 0.0 for figure in figures)
    assert 1 < plain < 30  # far above the goals, since forty mailboxes show what a process takes by chance
    assert plain < tls < 120
    assert 1 < peer < tls_peer


def test_every_mail_is_told_of_and_timed(tmp_path: Path) -> None:
    figures = {figure.words: figure.value or 0.0 for figure in mail_rates.rates(tmp_path, quick=True)}
    assert 0 < figures["EXISTS to event at 100 mails/s, median"] <= figures["EXISTS to event at 100 mails/s, p99"]
    assert figures["mails a second on one core"] > 1
    assert len(os.sched_getaffinity(0)) == os.cpu_count()


def test_the_network_that_is_cut_is_silent_then(tmp_path: Path) -> None:
    (figure,) = mail_cut.cut(tmp_path, quick=True)
    if figure.value is None:
        assert "network namespaces" in figure.note
        pytest.skip(figure.note)
    assert figure.value >= 2.0


def test_a_killed_watcher_and_a_new_one_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMAIL_LEASE", "2s")
    gone, come, moved = mail_share.share(tmp_path, quick=True)
    assert (gone.value or 0.0) > 1.0
    assert come.value
    assert moved.value == 0


def test_the_page_keeps_what_was_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "build" / "kept.json"
    page.write_text(f"before\n{mail_figures.BEGIN}\nold\n{mail_figures.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    mail_figures.keep("memory", [Figure("memory", 70.0, "KiB", "many", most=60)], "first", kept)
    mail_figures.keep(
        "rates", [Figure("rate", 450.0, "a second", least=500), beside("median", None, "ms")], "old", kept
    )
    mail_figures.keep("rates", [Figure("rate", 600.0, "a second", least=500)], "second", kept)
    mail_figures.write(tuple(mail_watch.PARTS), kept)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| memory | at most 60 KiB | 70.0 KiB | missed: 17 % too much | many |" in text
    assert "| rate | at least 500 a second | 600 a second | reached |  |" in text
    assert "old" not in text
    assert text.index("`first`") < text.index("`second`")
