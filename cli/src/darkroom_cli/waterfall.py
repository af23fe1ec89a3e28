"""A photo's trace in the terminal: each span a line, each line a piece of the time from the call to the end."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from darkroom_cli.rendering import STATUS_STYLES, indented, seconds_text, status_text, table

Json = Mapping[str, Any]

SERVICES = {"gateway": "blue", "thumbnailer": "yellow", "embedder": "magenta", "scheduler": "green"}
BARS = {"work": "█", "wait": "░", "batch": "▒"}
DURATION_COLUMNS = 8
"""Enough for all below a minute; longer ones, `59 min 59 s`, take what they need from the bars."""
NAME_SHARE, NAME_COLUMNS = 0.38, range(26, 49)
"""The names get so much of the width, within these bounds; what nests deeper than that is cut."""

ROLES = {"upload": "this upload", "original": "the work on the same bytes, which an earlier upload began"}


def trace_page(answer: Json, width: int) -> RenderableType:
    """The answer of `GET /v1/images/{id}/trace` for a terminal of so many columns."""
    parts: list[RenderableType] = [
        Text.assemble((answer["filename"] or answer["image_id"], "bold"), " ", status_text(answer["status"]))
    ]
    for trace in answer["traces"]:
        parts.append(Text())
        if len(answer["traces"]) > 1 or trace["role"] != "upload":
            parts.append(Text(ROLES[trace["role"]], "italic"))
        parts += [_summary(trace, width), Text(), _waterfall(trace, width), *_errors(trace["spans"])]
    parts += [Text(), _legend(answer["traces"])]
    if answer["is_cut"]:
        parts.append(Text("This is not all: the trace has more spans than one answer holds.", "yellow"))
    if answer["status"] not in ("ready", "failed"):
        parts.append(Text("In flight: what goes on is marked …", STATUS_STYLES["processing"]))
    return Group(*parts)


def milliseconds_text(ms: float) -> str:
    """A duration for people: `0.4 ms`, `38 ms`, `1.20 s`, `3 min 5 s`."""
    if ms < 999.5:
        return f"{ms:.1f} ms" if ms < 9.95 else f"{ms:.0f} ms"
    return seconds_text(ms / 1000)


def bar(start: float, length: float, total: float, columns: int) -> tuple[int, int]:
    """The first column of a bar, and how many it fills: at least one, and none beyond the last."""
    scale = columns / total if total > 0 else 0.0
    first = min(int(start * scale), columns - 1)
    return first, max(1, min(columns, round((start + length) * scale)) - first)


def _summary(trace: Json, width: int) -> RenderableType:
    summary = trace["summary"]
    facts = [(milliseconds_text(summary["total_ms"]), "bold")]
    if waited_ms := sum(summary["waited_ms"].values()):
        facts.append((f"waited {milliseconds_text(waited_ms)}", "dim"))
    if summary["held_back_ms"]:
        facts.append((f"held back {milliseconds_text(summary['held_back_ms'])} before a retry", "dim"))
    members = max((span["members"] or 0 for span in trace["spans"]), default=0)
    counted = (
        (summary["errors"], "error", "errors", "red"),
        (summary["retries"], "retry", "retries", "yellow"),
        (summary["redeliveries"], "redelivery", "redeliveries", "yellow"),
        (summary["dispatches"] if summary["dispatches"] > 1 else 0, "", "dispatches", "yellow"),
        (members if members > 1 else 0, "", "photos in the batch", "magenta"),
    )
    facts += [(f"{count} {one if count == 1 else many}", style) for count, one, many, style in counted if count]
    return Group(Text(" · ").join(Text(*fact) for fact in facts), Text(), indented(_where(summary, width)))


def _where(summary: Json, width: int) -> Table:
    """Where the time went, the longest first; the shares add up to the whole."""
    spent = defaultdict[tuple[str, str], float](float)
    for part in summary["parts"]:
        spent[part["category"], part["name"]] += part["duration_ms"]
    columns = max(10, min(40, width - 50))
    shown = table("where the time went", "time", "share", "", right=("time", "share"))
    for (category, name), ms in sorted(spent.items(), key=lambda item: -item[1]):
        share = ms / summary["total_ms"] if summary["total_ms"] else 0.0
        style = _style(category, name)
        drawn = Text(BARS.get(category, " ") * round(share * columns), style)
        shown.add_row(Text(name or "between spans", style), milliseconds_text(ms), f"{share:.0%}", drawn)
    return shown


def _waterfall(trace: Json, width: int) -> Table:
    names = min(max(round(width * NAME_SHARE), NAME_COLUMNS[0]), NAME_COLUMNS[-1])
    durations = [milliseconds_text(span["duration_ms"]) for span in trace["spans"]]
    numbers = max([DURATION_COLUMNS, *map(len, durations)])
    columns = max(10, width - names - numbers - 2)
    total = trace["summary"]["total_ms"]
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    shown.add_column(width=names, no_wrap=True, overflow="ellipsis")
    shown.add_column(width=numbers, no_wrap=True, justify="right")
    shown.add_column(width=columns, no_wrap=True)
    for span, duration in zip(trace["spans"], durations, strict=True):
        first, length = bar(span["start_ms"], span["duration_ms"], total, columns)
        style = "red" if span["status"] == "error" else _style(span["category"], span["service"])
        shown.add_row(
            _name(span, names),
            duration,
            Text.assemble(" " * first, (BARS[span["category"]] * length, style)),
        )
    return shown


def _name(span: Json, columns: int) -> Text:
    """The span's name at its level, and after it what is to be known of it, for which the name gives way."""
    marks = Text()
    for mark, style in _marks(span):
        marks.append(f" {mark}", style)
    style = "red" if span["status"] == "error" else "dim" if span["category"] == "wait" else ""
    name = Text(" " * span["depth"] + span["name"], style, no_wrap=True)
    name.truncate(max(6, columns - marks.cell_len), overflow="ellipsis")
    return name + marks


def _marks(span: Json) -> Iterator[tuple[str, str]]:
    if span["status"] == "error":
        yield "✗", "red"
    if span["retry"]:
        yield f"retry {span['retry']}", "yellow"
    if span["is_redelivered"]:
        yield "again", "yellow"
    if (span["members"] or 0) > 1:
        yield f"×{span['members']}", "magenta"  # noqa: RUF001
    if span["is_open"]:
        yield "…", STATUS_STYLES["processing"]
    if span["is_orphan"]:
        yield "?", "dim"


def _errors(spans: Sequence[Json]) -> list[RenderableType]:
    """What went wrong, each cause once, as a task and the step in it both have it."""
    causes = dict.fromkeys((span["message"] or span["name"]) for span in spans if span["status"] == "error")
    return [Text(), *(Text.assemble(("✗ ", "red"), cause) for cause in causes)] if causes else []


def _legend(traces: Iterable[Json]) -> Text:
    spans = [span for trace in traces for span in trace["spans"]]
    signs = [(f"{BARS['wait']} waiting", "dim")] if any(span["category"] == "wait" for span in spans) else []
    services = dict.fromkeys(span["service"] for span in spans if span["category"] == "work")
    signs += [(f"{BARS['work']} {service}", _style("work", service)) for service in services]
    if any(span["category"] == "batch" for span in spans):
        signs.append((f"{BARS['batch']} shared with other photos", _style("batch", "embedder")))
    return Text("  ").join(Text(*sign) for sign in signs)


def _style(category: str, name: str) -> str:
    return SERVICES.get(name, "cyan") if category in ("work", "batch") else "dim"
