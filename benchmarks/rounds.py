"""Interleaved rounds: the ways of doing one thing take turns, so that a busy minute hits them all alike.

A benchmark measures with `interleaved`, compares with `Comparison` and hands all of it to `publish`, which prints the
tables and writes `<name>.json` and `<name>.svg`. What counts are the ratios within a round: absolute figures differ
from machine to machine.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROUNDS = 5
RESULTS = Path(__file__).parent / "results"

Measures = Mapping[str, float]
Rounds = dict[str, dict[str, list[float]]]
"""By way and measure: a value for each round."""


def interleaved(ways: Mapping[str, Callable[[], Measures]], rounds: int = ROUNDS) -> Rounds:
    """Every way's measures in every round. Each round begins with another way."""
    taken: Rounds = {way: defaultdict(list) for way in ways}
    order = list(ways)
    for _ in range(rounds):
        for way in order:
            for measure, value in ways[way]().items():
                taken[way][measure].append(value)
        order.append(order.pop(0))
    return taken


def own_cpu_s() -> float:
    """CPU time of this process and of its children that have ended, user and system, in seconds."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time of these processes and all below them, user and system, in seconds; ended children count."""
    return sum(sum(process.cpu_times()[:4]) for process in _with_children(pids))


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes and all below them; what several share counts once (PSS)."""
    total = 0
    for process in _with_children(pids):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def _with_children(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            yield process
            yield from process.children(recursive=True)


@dataclass(frozen=True)
class Ratio:
    """How many times `above` is of `below`, round by round, and what was wanted of the median."""

    label: str
    above: str
    below: str
    at_least: float | None = None
    at_most: float | None = None

    def wanted(self) -> str:
        """The bound in words; empty without one."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    def is_met(self, median: float) -> bool | None:
        """Whether a median keeps the bound; None without one."""
        if self.at_least is not None:
            return median >= self.at_least
        return None if self.at_most is None else median <= self.at_most


@dataclass(frozen=True)
class Comparison:
    """One measure of several ways, a value for each round, and the ratios that matter."""

    title: str
    unit: str
    ways: Mapping[str, Sequence[float]]
    ratios: Sequence[Ratio] = ()

    @classmethod
    def of(cls, title: str, unit: str, rounds: Rounds, measure: str, ratios: Sequence[Ratio] = ()) -> "Comparison":
        """One measure out of what `interleaved` gave; ways that lack it are left out."""
        ways = {way: values[measure] for way, values in rounds.items() if measure in values}
        return cls(title, unit, ways, ratios)

    def quotients(self, ratio: Ratio) -> list[float]:
        """A ratio's value in each round."""
        return [a / b for a, b in zip(self.ways[ratio.above], self.ways[ratio.below], strict=True)]

    def lines(self) -> list[str]:
        """A table for the terminal."""
        width = 2 + max(len(label) for label in [*self.ways, *(ratio.label for ratio in self.ratios)])
        lines = [f"{self.title}, {self.unit}", f"  {'':{width}}{'min':>10}{'median':>10}{'max':>10}"]
        for way, values in self.ways.items():
            lines.append(f"  {way:{width}}" + "".join(f"{shown(value):>10}" for value in _spread(values)))
        for ratio in self.ratios:
            spread = _spread(self.quotients(ratio))
            verdict = {True: "  met", False: "  NOT MET", None: ""}[ratio.is_met(spread[1])]
            cells = "".join(f"{f'x {value:.2f}':>10}" for value in spread)
            lines.append(f"  {ratio.label:{width}}{cells}  {ratio.wanted()}{verdict}".rstrip())
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians ready to read."""
        ratios = []
        for ratio in self.ratios:
            low, median, high = _spread(self.quotients(ratio))
            ratios.append(asdict(ratio) | {"min": low, "median": median, "max": high, "is_met": ratio.is_met(median)})
        ways = {way: [round(value, 6) for value in values] for way, values in self.ways.items()}
        return {"title": self.title, "unit": self.unit, "ways": ways, "ratios": ratios}


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def shown(value: float) -> str:
    """A figure with three digits that mean something."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Where it ran: the processor, how many cores, which Python, and how busy the machine was."""
    names = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    models = {line.partition(": ")[2] for line in names if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(models)) or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def arguments(description: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The command line: what every benchmark takes, besides what `parser` has."""
    parser = parser or argparse.ArgumentParser()
    parser.description, parser.formatter_class = description, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each way takes its turn")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON and the plot")
    return parser.parse_args()


def publish(name: str, comparisons: Sequence[Comparison], folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Prints the tables and writes `<name>.json` and `<name>.svg`. `facts`: what else was found, by what it is."""
    for comparison in comparisons:
        print("\n".join(comparison.lines()), end="\n\n")
    for label, value in (facts or {}).items():
        print(f"{label}: {value}")
    sys.stdout.flush()
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "comparisons": [comparison.as_json() for comparison in comparisons],
        "facts": facts or {},
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    _plot(comparisons, folder / f"{name}.svg")


def _plot(comparisons: Sequence[Comparison], file: Path) -> None:
    """One panel a comparison: a bar for the median of each way, a line from its least to its greatest value."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "darkroom", "font.size": 9}
    from matplotlib import pyplot

    heights = [len(comparison.ways) + 1.6 for comparison in comparisons]
    figure, axes = pyplot.subplots(
        len(comparisons), figsize=(8, 0.27 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, comparison in zip(axes[:, 0], comparisons, strict=True):
        for row, (way, values) in enumerate(comparison.ways.items()):
            low, median, high = _spread(values)
            axis.barh(row, median, 0.6, color="#3567b0" if way.startswith("ours") else "#b9bec7")
            axis.plot((low, high), (row, row), color="black", linewidth=1)
            axis.annotate(shown(median), (high, row), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(comparison.ways)), list(comparison.ways))
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{comparison.title}, {comparison.unit}", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
