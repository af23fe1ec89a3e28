"""What the commands print: tables, bars and problems, for a person at a terminal. No requests, no files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from darkroom_cli.client import Batch, Found, Image, Task
from darkroom_cli.supervisor import ProcessState

STATUS_STYLES = {"ready": "green", "failed": "red", "processing": "yellow", "accepted": "yellow"}
NOTHING = "\u2013"
TIMES = "\u00d7"
SIZES = ("small", "medium", "large")
WIDE, ROOMY = 132, 100
"""From so many columns on tables show an id in full, and from so many on its end, which is for the eye only."""


def table(*columns: str, right: Sequence[str] = (), elastic: Sequence[str] = ()) -> Table:
    """An empty table in the house style: `right` columns hold numbers, `elastic` ones give way on a narrow terminal."""
    empty = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        empty.add_column(column, justify=justify, no_wrap=column not in elastic, overflow="ellipsis")
    return empty


def name_text(name: str | None) -> Text:
    """A name that an elastic column cuts instead of breaking it into lines."""
    return Text(name or NOTHING, no_wrap=True, overflow="ellipsis")


def indented(renderable: RenderableType) -> RenderableType:
    """The renderable two columns to the right."""
    return Padding(renderable, (0, 0, 0, 2), expand=False)


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


def palette_text(image: Image, colours: int = 4) -> Text:
    """The picture's main colours as blocks."""
    return Text.assemble(*(("██", entry["hex"]) for entry in (image["palette"] or [])[:colours]))


def dimensions(image: Image) -> str:
    """Width by height in pixels."""
    return pixels_text(image["width"], image["height"]) if image["width"] and image["height"] else NOTHING


def pixels_text(width: int, height: int) -> str:
    """Width by height in pixels."""
    return f"{width}{TIMES}{height}"


def images_table(images: Iterable[Image], width: int) -> Table:
    """What each image became, for a terminal of so many columns."""
    ids = ("id",) if width >= ROOMY else ()
    numbers = ("pixels", "KB", "thumbnails KB", "ready in")
    shown = table("picture", "", "format", *numbers, *ids, right=numbers, elastic=("picture",))
    for image in images:
        thumbnails = image["thumbnails"]
        is_ready = image["status"] == "ready"
        cells: list[RenderableType] = [
            name_text(image["filename"]),
            palette_text(image, 3) if is_ready else status_text(image["status"]),
            image["format"] or NOTHING,
            dimensions(image),
            f"{image['bytes'] / 1000:.1f}",
            "".join(f"{thumbnails[size]['bytes'] / 1000:5.1f}" for size in SIZES if size in thumbnails) or NOTHING,
            "known" if image["duplicate"] and is_ready else seconds_text(seconds_to_ready(image)),
        ]
        if ids:
            cells.append(Text(image["id"] if width >= WIDE else f"…{image['id'][-8:]}", "dim"))
        shown.add_row(*cells)
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


def task_details(task: Task) -> RenderableType:
    """What became of a task, and how long it waited apart from how long it ran."""
    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(style="dim")
    shown.add_column(overflow="fold")
    issued, started, finished = (moment(task[name]) for name in ("issued_at", "started_at", "finished_at"))
    rows: dict[str, RenderableType | None] = {
        "task": task["task_id"],
        "state": Text(task["state"].lower(), {"SUCCESS": "green"}.get(task["state"], "red")),
        "queue": task["queue"],
        "worker": task["worker"],
        # The clocks of two machines: a worker's may be behind.
        "waited": seconds_text(max(0.0, (started - issued).total_seconds())) if issued and started else None,
        "ran": seconds_text((finished - started).total_seconds()) if started and finished else None,
    }
    if isinstance(task["result"], dict):
        for name, value in task["result"].items():
            if name != "queue":
                rows[name.removesuffix("_s")] = f"{value} s" if name.endswith("_s") else str(value)
    if task["error"]:
        rows["error"] = f"{task['error']['message']} ({task['error']['type']})"
    for label, text in rows.items():
        if text:
            shown.add_row(label, text)
    return shown


def hits_table(found: Found) -> Table:
    """The results of a search, the best first; ids in full, because the next command is given one."""
    shown = table("score", "", "picture", "tags", "status", "id", right=("score",), elastic=("picture", "tags"))
    for hit in found["results"]:
        image = hit["image"]
        shown.add_row(
            f"{hit['score']:.3f}",
            palette_text(image, 2),
            name_text(image["filename"]),
            name_text(", ".join(image["tags"])),
            status_text(image["status"]),
            Text(image["id"], "dim"),
        )
    return shown


def refusals_table(refused: Iterable[tuple[str, Mapping[str, Any]]]) -> RenderableType:
    """Files with the problem of each."""
    shown = table("file", "problem", elastic=("file", "problem"))
    for name, problem in refused:
        cause = Text(str(problem.get("detail") or problem.get("title") or "unknown"))
        if problem.get("remedy"):
            cause.append(f"\n→ {problem['remedy']}", "cyan")
        shown.add_row(Text(name, "bold"), cause)
    return shown


def ledger_table(ledger: Mapping[str, int]) -> RenderableType:
    """The ledger, and whether it adds up."""
    return Group(ledger_columns(ledger), ledger_verdict(ledger))


def ledger_columns(counts: Mapping[str, int]) -> Table:
    """How many images were accepted and what became of them."""
    parts = ("ready", "failed", "deleted", "in_flight")
    shown = table("accepted", *(part.replace("_", " ") for part in parts), right=("accepted", "in flight", *parts))
    shown.add_row(*(f"{counts[name]:,}" for name in ("accepted", *parts)))
    return shown


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
    parts += [_callbacks_text(state["callbacks"])] if state.get("callbacks") else []
    parts += [_store_text(state["store"])]
    if refusal := state["uploads"]["refusal"]:
        parts += [Text.assemble(("! uploads are refused: ", "red"), refusal["detail"])]
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


def _callbacks_text(callbacks: Mapping[str, int]) -> Text:
    shown = Text(f"{callbacks['pending']} callbacks to deliver")
    if callbacks["failing"]:
        shown.append(f", {callbacks['failing']} of them failing so far", "yellow")
    if callbacks["failed"]:
        shown.append(f", {callbacks['failed']} given up", "red")
    return shown


def _store_text(store: Mapping[str, Any]) -> Text:
    if store["oldest_check_s"] is None:
        return Text("no photo in the store yet", "dim")
    return Text(f"every photo in the store was seen whole within the last {seconds_text(store['oldest_check_s'])}")


def _models_table(models: Iterable[Mapping[str, Any]]) -> RenderableType:
    shown = table("model", "state", "covers", "dimensions", right=("covers", "dimensions"), elastic=("model",))
    for model in models:
        style = {"active": "green", "filling": "yellow"}.get(model["state"], "dim")
        covers = f"{model['covered']} of {model['total']}"
        shown.add_row(model["id"], Text(model["state"], style), covers, str(model["dim"]))
    return shown if shown.row_count else Text("no model yet: no embedder has been up", "yellow")


def _jobs_table(jobs: Iterable[Mapping[str, Any]], now: datetime) -> RenderableType:
    shown = table("job", "last run", "result", elastic=("result",))
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


PROBE_STYLES = {"ok": "green", "late": "yellow", "wrong": "red"}
LONG_WAIT_S = 60
"""From so long on a wait is shown as one that somebody should look at."""


def queues_page(overview: Mapping[str, Any], width: int) -> RenderableType:
    """Every queue with its figures; what nobody takes from and what waits for long stand out."""
    numbers = ("waiting", "oldest", "in hand", "per second", "workers")
    nodes = ("taken by",) if width >= ROOMY else ()
    shown = table("queue", *numbers, *nodes, "probe", right=numbers, elastic=("probe",))
    for queue in overview["queues"]:
        is_left = queue["consumers"] == 0
        age = queue["oldest_age_s"]
        probe = queue["probe"] or {"state": NOTHING, "text": ""}
        cells: list[RenderableType] = [
            Text(queue["name"], "bold" if queue["depth"] else ""),
            Text(_figure(queue["depth"]), "red" if is_left and queue["depth"] else ""),
            Text(seconds_text(age), "yellow" if age is not None and age >= LONG_WAIT_S else ""),
            _figure(queue["in_hand"]),
            _rate(queue["rate_per_s"]),
            Text(_figure(queue["consumers"]), "red" if is_left else ""),
            *([Text(queue["node"], "red" if is_left else "dim")] if nodes else []),
            Text.assemble(
                (probe["state"], PROBE_STYLES.get(probe["state"], "dim")),
                (f"  {probe['text']}" if width >= WIDE else "", "dim"),
                no_wrap=True,
                overflow="ellipsis",
            ),
        ]
        shown.add_row(*cells)
    parts: list[RenderableType] = [shown, Text(), _dead_letters_line(overview["dead_letters"])]
    reasons = dict.fromkeys(overview["unknown"].values())
    parts += [Text.assemble(("✗ ", "red"), reason) for reason in reasons]
    return Group(*parts)


def _dead_letters_line(dead: Mapping[str, Any]) -> Text:
    if not dead["supported"]:
        return Text("dead letters: this broker has none", "dim")
    kept = dead["kept"]
    told = f"dead letters: {_figure(dead['depth'])} to be read, {_figure(kept)} for a person"
    return Text(f"{told}: darkroom dead-letters list" if kept else told, "red" if kept else "dim")


def _figure(count: int | None) -> str:
    return NOTHING if count is None else f"{count:,}"


def _rate(per_s: float | None) -> str:
    if per_s is None:
        return NOTHING
    return "0" if per_s == 0 else f"{per_s:.2f}" if per_s < 10 else f"{per_s:,.0f}"


OUTCOME_STYLES = {"kept": "red", "failed_image": "yellow", "replayed": "green"}


def outcome_text(outcome: str) -> Text:
    """What became of a dead letter, in its colour."""
    return Text(outcome.replace("_", " "), OUTCOME_STYLES.get(outcome, "dim"))


def dead_letters_page(listed: Mapping[str, Any], now: datetime) -> RenderableType:
    """The newest dead letters, and how many there are of each outcome."""
    parts: list[RenderableType] = [] if listed["supported"] else [Text(listed["note"], "yellow")]
    if listed["dead_letters"]:
        shown = table("no", "died", "queue", "task", "reason", "outcome", "cause", right=("no",), elastic=("cause",))
        for letter in listed["dead_letters"]:
            task = (letter["task"] or NOTHING).rpartition(".")[2]
            died = f"{letter['reason'].replace('_', ' ')}, {letter['deaths']}{TIMES}"
            since = ago(letter["received_at"], now)
            cells = (str(letter["id"]), since, letter["queue"] or NOTHING, task, died, outcome_text(letter["outcome"]))
            shown.add_row(*cells, name_text(letter["cause"]))
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in listed["counts"].items() if count)
        parts += [shown, Text(), Text(counts)]
    elif listed["supported"]:
        parts.append(Text("no dead letters"))
    return Group(*parts)


def dead_letter_details(letter: Mapping[str, Any], now: datetime) -> RenderableType:
    """One dead letter with its body."""
    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(style="dim")
    shown.add_column(overflow="fold")
    shown.add_row("no", str(letter["id"]))
    shown.add_row("outcome", outcome_text(letter["outcome"]))
    for name in ("cause", "queue", "task", "task_id", "reason", "deaths", "sha256", "generation"):
        if letter[name] is not None:
            shown.add_row(name.replace("_", " "), str(letter[name]))
    shown.add_row("died", ago(letter["received_at"], now))
    if letter["replayed_at"]:
        shown.add_row("replayed", ago(letter["replayed_at"], now))
    shown.add_row("body", Text(letter["body"]))
    return shown


def report_page(report: Mapping[str, Any]) -> RenderableType:
    """A weekly usage report: photos, new bytes, speed by lane, failures by cause, storage."""
    figures = report["report"]
    start, end = (f"{moment(report[name]):%a %d %b %Y}" for name in ("period_start", "period_end"))
    parts: list[RenderableType] = [Text.assemble((f"{start} to {end}", "bold"), (" UTC", "dim")), Text()]
    parts.append(ledger_columns(figures["photos"]))
    speed = table("lane", "worked on", "half ready in", "95 % in", right=("worked on", "half ready in", "95 % in"))
    for lane, seconds in figures["seconds_to_ready"].items():
        speed.add_row(lane, f"{seconds['photos']:,}", seconds_text(seconds["p50"]), seconds_text(seconds["p95"]))
    failures = table("failed because of", "photos", right=("photos",))
    for cause, count in sorted(figures["failures_by_cause"].items(), key=lambda item: -item[1]):
        failures.add_row(cause, f"{count:,}")
    storage = table("stored", "", right=("",))
    storage.add_row("new originals", bytes_text(figures["bytes"]))
    for kind, count in sorted(figures["storage_bytes"].items(), key=lambda item: -item[1]):
        storage.add_row(f"all {kind}", bytes_text(count))
    for shown in (speed, failures, storage):
        if shown.row_count:
            parts += [Text(), shown]
    return Group(*parts)


def upload_progress(console: Console) -> Progress:
    """A bar that counts bytes."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def task_progress(console: Console) -> Progress:
    """A bar for one task, which moves to and fro until the task says how far it is."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
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
        disable=not console.is_terminal,
    )


LISTED = 50
"""More images than this are counted, not listed."""


def outcome_of(images: Sequence[Image], width: int) -> RenderableType:
    """What became of an upload: each image where there are not too many, each failure, the counts."""
    failed = [image for image in images if image["status"] == "failed"]
    good = [image for image in images if image["status"] != "failed"]
    parts: list[RenderableType] = [images_table(good, width), Text()] if 0 < len(good) <= LISTED else []
    if failed:
        parts += [refusals_table((image["filename"] or image["id"], image["error"] or {}) for image in failed), Text()]
    return Group(*parts, Text(f"{len(good)} ready, {len(failed)} failed"))


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
