"""Prometheus' text format (version 0.0.4): a page of metrics, and a histogram to count with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the buckets for what takes milliseconds when all is well."""

Samples = Iterable[tuple[Mapping[str, str], float]]

WHOLE: Final = ("process_", "imap_client_", "app_", "work_queue_", "tstack_")
"""How names begin that stay as they are."""


class Histogram:
    """How often a value fell below each of some bounds; as Prometheus wants it, but not summed up."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many values were at or below a bound, and above the one before it; the last one: above all."""
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value; below 0, as clocks of two machines can make it, counts as 0."""
        value = max(0.0, value)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


Histograms = Iterable[tuple[Mapping[str, str], Histogram]]


class Page:
    """The lines of one answer."""

    def __init__(self, prefix: str = "tstack_") -> None:
        """`prefix`: how names begin, but for those of `WHOLE`."""
        self._prefix = prefix
        self._lines: list[str] = []

    def add(self, name: str, kind: str, text: str, samples: float | Samples) -> None:
        """One metric: a number, or samples with their labels. `kind` is "gauge" or "counter"."""
        whole = self._head(name, kind, text)
        if isinstance(samples, int | float):
            samples = [({}, samples)]
        self._lines += [f"{whole}{_labels(labels)} {_number(value)}" for labels, value in samples]

    def add_by(self, label: str, name: str, kind: str, text: str, samples: Mapping[str, float]) -> None:
        """One metric with one label, sorted by it."""
        self.add(name, kind, text, [({label: key}, samples[key]) for key in sorted(samples)])

    def add_histogram(self, name: str, text: str, histograms: Histogram | Histograms) -> None:
        """One histogram, or several with their labels: buckets summed up from below, as the format wants them."""
        whole = self._head(name, "histogram", text)
        if isinstance(histograms, Histogram):
            histograms = [({}, histograms)]
        for labels, histogram in histograms:
            below = 0
            for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
                below += count
                self._lines.append(f"{whole}_bucket{_labels({**labels, 'le': _number(bound)})} {below}")
            self._lines.append(f"{whole}_sum{_labels(labels)} {_number(histogram.total)}")
            self._lines.append(f"{whole}_count{_labels(labels)} {below}")

    def _head(self, name: str, kind: str, text: str) -> str:
        whole = name if name.startswith(WHOLE) else self._prefix + name
        self._lines += [f"# HELP {whole} {text}", f"# TYPE {whole} {kind}"]
        return whole

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)
