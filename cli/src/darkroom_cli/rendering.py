"""What the commands print: tables, bars and problems, for a person at a terminal. No requests, no files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from darkroom_cli.client import Batch, Found, Image
from darkroom_cli.supervisor import ProcessState

STATUS_STYLES = {"ready": "green", "failed": "red", "processing": "yellow", "accepted": "yellow"}
NOTHING = "\u2013"
TIMES = "\u00d7"
SIZES = ("small", "medium", "large")
WIDE_ENOUGH = 120
"""Columns from which tables show an id in full: a shortened one is for the eye only."""


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the house style; the columns named in `right` hold numbers."""
    empty = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        empty.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return empty


def indented(renderable: RenderableType) -> RenderableType:
    """The renderable two columns to the right."""
    return Padding(renderable, (0, 0, 0, 2))


def problem_text(problem: Mapping[str, Any]) -> RenderableType:
    """A problem document: title, detail, remedy."""
    lines = [Text.assemble(("✗ ", "red"), (str(problem.get("title", "Refused")), "bold"))]
    if problem.get("detail"):
        lines.append(Text(f"  {problem['detail']}"))
    if problem.get("remedy"):
        lines.append(Text.assemble(("  → ", "cyan"), str(problem["remedy"])))
    return Group(*lines)


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, STATUS_STYLES.get(status, ""))


def bytes_text(count: int | None) -> str:
    """A size for people, such as `55.1 KB`; decimal, as file managers and disks count."""
    if count is None:
        return NOTHING
    size = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def seconds_text(seconds: float | None) -> str:
    """A duration for people: `0.42 s`, `3 min 5 s`, `2 d 4 h`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours == 0:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(value: str | None) -> datetime | None:
    """An ISO 8601 timestamp of an answer; UTC where it names no zone."""
    if value is None:
        return None
    parsed = datetime.fromisoformat(value)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def seconds_to_ready(image: Image) -> float | None:
    """From the upload to the end of the work."""
    created, ready = moment(image["created_at"]), moment(image["ready_at"])
    return (ready - created).total_seconds() if created and ready else None


def ago(value: str | None, now: datetime) -> str:
    """How long ago an ISO 8601 timestamp was."""
    then = moment(value)
    return "never" if then is None else f"{seconds_text(max(0.0, (now - then).total_seconds()))} ago"


def id_text(image_id: str, width: int) -> Text:
    """An id in full where the terminal has room, else its last digits: the first ones are a clock and much alike."""
    return Text(image_id if width >= WIDE_ENOUGH else f"…{image_id[-8:]}", "dim")


def palette_text(image: Image) -> Text:
    """The picture's main colours as blocks."""
    colours = [entry["hex"] for entry in image["palette"] or []][:4]
    return Text.assemble(*(("██", colour) for colour in colours))


def dimensions(image: Image) -> str:
    """Width by height in pixels."""
    return pixels_text(image["width"], image["height"]) if image["width"] and image["height"] else NOTHING


def pixels_text(width: int, height: int) -> str:
    """Width by height in pixels."""
    return f"{width} {TIMES} {height}"


def images_table(images: Iterable[Image], width: int) -> Table:
    """What each image became."""
    shown = table(
        "picture", "", "format", "pixels", "size", "thumbnails s/m/l", "ready in", "id",
        right=("pixels", "size", "thumbnails s/m/l", "ready in"),
    )  # fmt: skip
    for image in images:
        thumbnails = image["thumbnails"]
        kilobytes = " ".join(f"{thumbnails[size]['bytes'] / 1000:.1f}" for size in SIZES if size in thumbnails)
        is_ready = image["status"] == "ready"
        shown.add_row(
            Text(image["filename"] or NOTHING),
            palette_text(image) if is_ready else status_text(image["status"]),
            image["format"] or NOTHING,
            dimensions(image),
            bytes_text(image["bytes"]),
            f"{kilobytes} KB" if kilobytes else NOTHING,
            "known" if image["duplicate"] and is_ready else seconds_text(seconds_to_ready(image)),
            id_text(image["id"], width),
        )
    return shown


def image_details(image: Image) -> RenderableType:
    """Everything about one image."""
    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(style="dim")
    shown.add_column(overflow="fold")

    def row(name: str, value: RenderableType | None) -> None:
        if value:
            shown.add_row(name, value)

    row("id", image["id"])
    row("status", status_text(image["status"]))
    row("file", image["filename"])
    row("format", f"{image['format']}, {dimensions(image)}, {bytes_text(image['bytes'])}" if image["format"] else None)
    row("taken", image["taken_at"])
    row("tags", ", ".join(image["tags"]))
    row("lane", image["lane"])
    row("colours", palette_text(image))
    for size in SIZES:
        if thumbnail := image["thumbnails"].get(size):
            pixels = pixels_text(thumbnail["width"], thumbnail["height"])
            row(size, f"{pixels}, {bytes_text(thumbnail['bytes'])}")
    for embedding in image["embeddings"]:
        row("embedding", f"{embedding['model']}, {embedding['dim']} dimensions")
    row("ready in", seconds_text(seconds_to_ready(image)) if image["ready_at"] else None)
    row("batch", image["batch_id"])
    if image["error"]:
        return Group(shown, problem_text(image["error"]))
    return shown


def hits_table(found: Found) -> Table:
    """The results of a search, the best first."""
    shown = table("score", "", "id", "picture", "tags", "status", right=("score",))
    for hit in found["results"]:
        image = hit["image"]
        shown.add_row(
            f"{hit['score']:.3f}",
            palette_text(image),
            # Always whole: it is what the next command is given.
            Text(image["id"], "dim"),
            Text(image["filename"] or NOTHING),
            Text(", ".join(image["tags"])),
            status_text(image["status"]),
        )
    return shown


def failures_table(images: Iterable[Image]) -> RenderableType:
    """Why each failed image failed."""
    return refusals_table((image["filename"] or image["id"], image["error"] or {}) for image in images)


def refusals_table(refused: Iterable[tuple[str, Mapping[str, Any]]]) -> RenderableType:
    """Files with the problem of each."""
    shown = table("file", "problem")
    for name, problem in refused:
        cause = Text(str(problem.get("detail") or problem.get("title") or "unknown"))
        if problem.get("remedy"):
            cause.append(f"\n→ {problem['remedy']}", "cyan")
        shown.add_row(Text(name, "bold"), cause)
    return shown


def ledger_table(ledger: Mapping[str, int]) -> RenderableType:
    """The ledger, and whether it adds up."""
    parts = ("ready", "failed", "deleted", "in_flight")
    shown = table("accepted", *(part.replace("_", " ") for part in parts), right=("accepted", "in flight", *parts))
    shown.add_row(*(f"{ledger[name]:,}" for name in ("accepted", *parts)))
    return Group(shown, ledger_verdict(ledger))


def adds_up(ledger: Mapping[str, int]) -> bool:
    """Whether every accepted image is in one state."""
    return ledger["accepted"] == sum(ledger[part] for part in ("ready", "failed", "deleted", "in_flight"))


def ledger_verdict(ledger: Mapping[str, int]) -> Text:
    """Whether the ledger adds up, in words."""
    if adds_up(ledger):
        return Text.assemble(("✓ ", "green"), "adds up")
    return Text.assemble(("✗ ", "red"), ("does not add up: ", "bold"), "an image is missing or counted twice")


def status_page(
    state: Mapping[str, Any], processes: Mapping[str, ProcessState], logs: str | None, now: datetime
) -> RenderableType:
    """The answer of `GET /v1/status`, and the local mode's processes where there are any."""
    parts: list[RenderableType] = [Text.assemble(("Darkroom ", "bold"), str(state["version"])), Text()]
    parts += [ledger_table(state["ledger"]), Text(), _dispatcher_text(state["dispatcher"])]
    parts += [Text(), _models_table(state["models"]), Text(), _jobs_table(state["jobs"], now)]
    if processes:
        parts += [Text(), _processes_table(processes, now)]
        parts += [Text(f"logs: {logs}", "dim")] if logs else []
    return Group(*parts)


def _dispatcher_text(dispatcher: Mapping[str, Any]) -> Text:
    broker = ("broker connected", "") if dispatcher["connected"] else ("broker away: uploads are kept", "red")
    waiting = f", {dispatcher['waiting']} to dispatch"
    if dispatcher["oldest_wait_s"] is not None:
        waiting += f", the oldest since {seconds_text(dispatcher['oldest_wait_s'])}"
    if dispatcher["backfills"]:
        waiting += f", {dispatcher['backfills']} to embed again"
    return Text.assemble(broker, waiting)


def _models_table(models: Iterable[Mapping[str, Any]]) -> RenderableType:
    shown = table("model", "state", "covers", "dimensions", right=("covers", "dimensions"))
    for model in models:
        style = {"active": "green", "filling": "yellow"}.get(model["state"], "dim")
        covers = f"{model['covered']} of {model['total']}"
        shown.add_row(model["id"], Text(model["state"], style), covers, str(model["dim"]))
    return shown if shown.row_count else Text("no model yet: no embedder has been up", "yellow")


def _jobs_table(jobs: Iterable[Mapping[str, Any]], now: datetime) -> RenderableType:
    shown = table("job", "last run", "result")
    for job in jobs:
        result = Text(job["summary"] or NOTHING)
        if job["alarm"]:
            result = Text.assemble((f"! {job['alarm']}", "red"))
        elif job["finished_at"] and job["succeeded_at"] != job["finished_at"]:
            result.stylize("red")
        shown.add_row(job["name"].replace("_", " "), ago(job["finished_at"] or job["started_at"], now), result)
    return shown if shown.row_count else Text("no job has run yet", "yellow")


def _processes_table(states: Mapping[str, ProcessState], now: datetime) -> RenderableType:
    shown = table("process", "pid", "for", "restarts", right=("pid", "for", "restarts"))
    for name, state in states.items():
        since = moment(state.since)
        shown.add_row(
            name,
            Text("down", "red") if state.pid is None else str(state.pid),
            seconds_text((now - since).total_seconds()) if since else NOTHING,
            Text(str(state.restarts), "yellow" if state.restarts else ""),
        )
    return shown


def report_page(report: Mapping[str, Any]) -> RenderableType:
    """A usage report, whatever figures it has; names tell their units."""
    start, end = (f"{moment(report[name]):%a %d %b %Y %H:%M}" for name in ("period_start", "period_end"))
    shown = table("figure", "", right=("",))
    for name, value in _flattened(report["report"]):
        shown.add_row(name.removesuffix("_s").replace("_", " "), _figure(name, value))
    return Group(Text.assemble((f"{start} to {end}", "bold"), (" UTC", "dim")), Text(), shown)


def _flattened(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flattened(inner, f"{path}, {name}" if path else str(name))
    else:
        yield path, value


def _figure(name: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_s"):
            return seconds_text(float(value))
        return bytes_text(int(value)) if "bytes" in name else f"{value:,}"
    return NOTHING if value is None else str(value)


def upload_progress(console: Console) -> Progress:
    """A bar that counts bytes."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    )


def work_progress(console: Console) -> Progress:
    """A bar that counts pictures; the field `failed` says how many of them failed."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        console=console,
        transient=True,
    )


def counted(batches: Iterable[Batch]) -> tuple[int, int, int]:
    """How many images the batches have, how many of them are done, and how many of these failed."""
    batches = list(batches)
    total = sum(batch["total"] for batch in batches)
    return total, total - sum(batch["pending"] for batch in batches), sum(batch["failed"] for batch in batches)


def failed_text(failed: int) -> str:
    """The words beside a bar."""
    return f"{failed} failed" if failed else ""


class ConsoleSteps:
    """The start of the local mode, a line for each step."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Callable[[str], None]]:
        """Shows `doing` while the block runs, and whatever the block says instead, then `done`."""
        begun = datetime.now(UTC)
        with self._console.status(f"{doing} …", spinner="dots") as status:
            yield lambda text: status.update(f"{text} …")
        taken = seconds_text((datetime.now(UTC) - begun).total_seconds())
        self._console.print(Text.assemble(("  ✓ ", "green"), f"{done} ", (taken, "dim")))
