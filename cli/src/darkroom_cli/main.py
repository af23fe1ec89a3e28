"""The `darkroom` command."""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from darkroom_cli import contact_sheet, rendering, waterfall
from darkroom_cli.client import (
    DEFAULT_URL,
    POLL_S,
    Batch,
    Darkroom,
    DarkroomError,
    Image,
    ProblemError,
    Task,
    UnreachableError,
)
from darkroom_cli.local import DEFAULT_DATA_DIR, LocalOptions, is_url, operate, running, without_password
from darkroom_cli.servers import ServerError
from darkroom_cli.supervisor import StopRequested, read_states
from darkroom_cli.uploading import Journal, find_files, upload_files

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

# Results on standard output, everything on the way on standard error: `darkroom ledger --json | jq` works.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
COLUMNS_IN_FILES = 200
QUEUES_EVERY_S = 1.0


class Commands(click.Group):
    """The commands; what goes wrong in one is said in a few words."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ProblemError as exc:
            err.print(rendering.problem_text(exc.problem))
        except UnreachableError as exc:
            remedy = "Start Darkroom with `darkroom up`, or set DARKROOM_URL to one that runs."
            err.print(rendering.problem_text({"title": "Darkroom does not answer", "detail": exc, "remedy": remedy}))
        except (DarkroomError, ServerError, TimeoutError) as exc:
            title, _, rest = str(exc).partition("\n")
            err.print(rendering.problem_text({"title": title, "detail": rest.replace("\n", "\n  ")}))
        except StopRequested:
            err.print("stopped", style="dim")
            sys.exit(130)
        sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="darkroom-cli", message="darkroom %(version)s")
def main() -> None:
    """Darkroom: photos go in; thumbnails, embeddings and search come out.

    The commands that ask talk to DARKROOM_URL (default http://127.0.0.1:8000) with the key in DARKROOM_API_KEY.
    """
    for console in (out, err):
        # Into a file or a pipe lines are long, for other programs.
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = COLUMNS_IN_FILES


def local_options(function: FunctionT) -> FunctionT:
    """The options of `up` and `demo`, as one `LocalOptions` without a default data folder."""
    for option in (
        click.option(
            "--workers", type=click.IntRange(1), help="Photos rendered at once on each lane.  [default: one a core]"
        ),
        click.option(
            "--broker",
            default="embedded",
            show_default=True,
            metavar="embedded|rabbitmq|URL",
            callback=_checked_broker,
            help="embedded: Redis; rabbitmq: a private node of the installed one; URL: amqp://… of one that runs.",
        ),
        click.option(
            "--grpc-port", default=50_051, show_default=True, type=click.IntRange(1, 65_535), help="Of the gRPC API."
        ),
        click.option(
            "--http-port", default=8000, show_default=True, type=click.IntRange(1, 65_535), help="Of the REST API."
        ),
    ):
        function = option(function)
    return function


def _checked_broker(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in ("embedded", "rabbitmq") and not is_url(value):
        raise click.BadParameter(f"{value!r} is neither `embedded` nor `rabbitmq` nor an amqp:// URL")
    return value


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Everything is kept here.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print what the server answered.")


@main.command()
@data_dir_option
@local_options
def up(data_dir: Path, http_port: int, grpc_port: int, broker: str, workers: int | None) -> None:
    """Run everything on this machine until Ctrl-C."""
    options = LocalOptions(data_dir, http_port, grpc_port, broker, workers)
    _announce(options)
    with suppress(StopRequested), running(options, rendering.ConsoleSteps(err)) as supervisor:
        _say_ready(options)
        supervisor.wait()
        err.print("stopping …", style="dim")


@main.command()
@click.option("--exit", "is_over_after", is_flag=True, help="Stop after it, with an error if anything was wrong.")
@click.option("--open", "is_opened", is_flag=True, help="Open the found pictures in the browser.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Everything is kept here.  [default: .darkroom/demo, with --exit a temporary folder]",
)
@local_options
def demo(
    is_over_after: bool,
    is_opened: bool,
    data_dir: Path | None,
    http_port: int,
    grpc_port: int,
    broker: str,
    workers: int | None,
) -> None:
    """Run everything on this machine, upload sample pictures and search them."""
    try:
        # Here, because drawing the samples needs Pillow, which a mere client has not.
        from darkroom_cli.demo import show_around
    except ImportError as exc:
        raise ServerError(f"the demo needs {exc.name}: run `pip install 'darkroom-cli[local]'`") from exc

    is_temporary = data_dir is None and is_over_after
    if data_dir is None:
        data_dir = Path(tempfile.mkdtemp(prefix="darkroom-")) if is_over_after else DEFAULT_DATA_DIR / "demo"
    options = LocalOptions(data_dir, http_port, grpc_port, broker, workers)
    _announce(options)
    wrong = ["it was stopped before its end"]
    try:
        with suppress(StopRequested), running(options, rendering.ConsoleSteps(err)) as supervisor:
            _say_ready(options)
            with _client(options.url) as client:
                wrong, sections = show_around(client, out, data_dir / "samples")
            if is_opened:
                err.print(f"contact sheet: {contact_sheet.show(sections)}", style="dim")
            _print_verdict(wrong)
            if not is_over_after:
                _print_hints(options)
                supervisor.wait()
            err.print("stopping …", style="dim")
    finally:
        if is_temporary and wrong:
            err.print(f"logs and data are kept in {data_dir}", style="dim")
        elif is_temporary:
            shutil.rmtree(data_dir, ignore_errors=True)
    sys.exit(1 if wrong else 0)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--lane", type=click.Choice(["interactive", "bulk"]), default="interactive", show_default=True)
@click.option("--tag", "tags", multiple=True, help="For all of them; can be given several times.")
@click.option("--watch", "is_watched", is_flag=True, help="Wait until all are done.")
def upload(paths: tuple[str, ...], lane: str, tags: tuple[str, ...], is_watched: bool) -> None:
    """Upload files, folders (to any depth) and patterns.

    After an interruption the same command goes on where it stopped.
    """
    files, unmatched = find_files(paths)
    for argument in unmatched:
        err.print(Text.assemble(("✗ ", "red"), f"no picture at {argument}"))
    if not files:
        sys.exit(1)
    with _client() as client:
        command = [client.url, lane, *sorted(tags), "--", *sorted(str(path.resolve()) for path in files)]
        journal = Journal.open(_state_folder() / "uploads", command)
        try:
            with rendering.upload_progress(err) as progress:
                total = sum(path.stat().st_size for path in files if path.exists())
                bar = progress.add_task(f"{len(files)} files", total=total)
                result = upload_files(
                    client,
                    files,
                    journal=journal,
                    lane=lane,
                    tags=tags,
                    on_sent=lambda sent: progress.advance(bar, sent),
                )
        except (KeyboardInterrupt, UnreachableError) as exc:
            if journal.batches:
                err.print(f"stopped after {len(journal.batches)} files; the same command goes on from there")
            if isinstance(exc, UnreachableError):
                raise
            sys.exit(130)
        journal.remove()
        parts = [f"{result.accepted} accepted"]
        if result.duplicates:
            parts.append(f"{result.duplicates} of them known already")
        if result.resumed:
            parts.append(f"{result.resumed} were there from the interrupted run")
        if result.refused:
            parts.append(f"{len(result.refused)} refused")
        out.print(", ".join(parts))
        if result.refused:
            out.print(rendering.refusals_table((str(path), problem) for path, problem in result.refused))
        failed = False
        if is_watched and result.batch_ids:
            failed = not _watch_batches(client, result.batch_ids)
        else:
            for batch_id in result.batch_ids:
                out.print(Text.assemble(("batch ", "dim"), batch_id))
    sys.exit(1 if result.refused or unmatched or failed else 0)


@main.command()
@click.argument("id_", metavar="ID|BATCH")
@json_option
def watch(id_: str, as_json: bool) -> None:
    """Follow an image or a batch until it is done."""
    with _client() as client:
        try:
            batch: Batch | None = client.batch(id_)
        except ProblemError as exc:
            if exc.status != 404:
                raise
            batch = None
        if batch is not None:
            is_good = _watch_batches(client, [id_], as_json=as_json)
        else:
            image = _watch_image(client, id_)
            is_good = image["status"] == "ready"
            if as_json:
                _print_json(image)
            else:
                out.print(rendering.image_details(image))
    sys.exit(0 if is_good else 1)


@main.command()
@click.argument("text", required=False)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Search by this picture.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 100))
@click.option("--tag", "tags", multiple=True, help="Only images with this tag; can be given several times.")
@click.option("--open", "is_opened", is_flag=True, help="Show the pictures in the browser.")
@json_option
def search(
    text: str | None, image: Path | None, limit: int, tags: tuple[str, ...], is_opened: bool, as_json: bool
) -> None:
    """Find images by a text or by a picture."""
    if (text is None) == (image is None):
        raise click.UsageError("give either a TEXT or --image FILE")
    with _client() as client:
        if image is not None:
            found, heading = client.search_image(image, limit=limit, tags=tags), image.name
        else:
            found, heading = client.search(text or "", limit=limit, tags=tags), text or ""
        if as_json:
            _print_json(found)
        elif found["results"]:
            out.print(rendering.hits_table(found))
        else:
            out.print("nothing found")
        if is_opened:
            err.print(
                f"contact sheet: {contact_sheet.show([contact_sheet.section(client, heading, found)])}", style="dim"
            )


@main.command()
@click.argument("id_", metavar="ID")
def retry(id_: str) -> None:
    """Have the work on a failed image done again."""
    with _client() as client:
        client.retry(id_)
    out.print("accepted")


@main.command()
@click.argument("id_", metavar="ID")
@json_option
def trace(id_: str, as_json: bool) -> None:
    """Show where an image's time went: its work, its waits, what went wrong."""
    with _client() as client:
        answer = client.trace(id_)
        if as_json:
            _print_json(answer)
            return
        out.print(waterfall.trace_page(answer, out.width))
        if out.is_terminal:
            err.print(f"{client.url}/images/{id_}/trace", style="dim", soft_wrap=True)


@main.command()
@click.argument("kind", type=click.Choice(["add", "cpu", "io", "fail", "slow"]))
@click.option(
    "--service",
    type=click.Choice(["thumbnailer", "embedder", "scheduler"]),
    help="Whose queue it goes through.  [default: thumbnailer]",
)
@click.option("--lane", type=click.Choice(["interactive", "bulk"]), help="[default: interactive]")
@click.option("--seconds", type=float, help="How long cpu and slow last.  [default: 1]")
@click.option("--countdown", type=int, help="Whole seconds before it may begin.")
@click.option("--expires", type=int, help="Seconds after which nobody begins it.  [default: 600]")
@click.option("--no-wait", is_flag=True, help="Print the task's id and end.")
@json_option
def probe(
    kind: str,
    service: str | None,
    lane: str | None,
    seconds: float | None,
    countdown: int | None,
    expires: int | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Send a synthetic task through a queue and follow it.

    add: adds two numbers. cpu: computes. io: writes, reads and removes a blob. fail: fails. slow: sleeps.
    """
    with _client() as client:
        task_id = client.probe(
            kind, service=service, lane=lane, seconds=seconds, countdown_seconds=countdown, expires_seconds=expires
        )
        if no_wait:
            out.print(task_id)
            return
        with rendering.task_progress(err) as progress:
            bar = progress.add_task("waiting", total=None)

            def show(task: Task) -> None:
                done = task["progress"] or {"done": 0, "total": None}
                progress.update(bar, description=task["state"].lower(), completed=done["done"], total=done["total"])

            task = client.ended_task(task_id, on_change=show)
    if as_json:
        _print_json(task)
    else:
        out.print(rendering.task_details(task))
    sys.exit(0 if task["state"] == ("FAILURE" if kind == "fail" else "SUCCESS") else 1)


@main.command()
@json_option
def ledger(as_json: bool) -> None:
    """Count what was accepted and what became of it."""
    with _client() as client:
        counts = client.ledger()
    if as_json:
        _print_json(counts)
    else:
        out.print(rendering.ledger_table(counts))
    sys.exit(0 if rendering.adds_up(counts) else 1)


@main.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Of a local Darkroom, whose processes are shown too.",
)
@json_option
def status(data_dir: Path, as_json: bool) -> None:
    """Show the services, jobs, models and the ledger."""
    with _client() as client:
        state = client.status()
    if as_json:
        _print_json(state)
        return
    # The demo keeps its own folder below.
    folder = next((folder for folder in (data_dir, data_dir / "demo") if read_states(folder)), None)
    processes = read_states(folder) if folder else {}
    logs = str(folder / "logs") if folder else None
    out.print(rendering.status_page(state, processes, logs, datetime.now(UTC)))


@main.command()
@json_option
def report(as_json: bool) -> None:
    """Show the last weekly usage report."""
    with _client() as client:
        reports = client.reports()
    if as_json:
        _print_json(reports)
    elif reports:
        out.print(rendering.report_page(reports[0]))
    else:
        out.print("no report yet: one is made every Monday at 07:30 UTC")


@main.command()
@click.option("--once", "is_once", is_flag=True, help="Show them once, also on a terminal.")
@json_option
def queues(is_once: bool, as_json: bool) -> None:
    """Show every queue: what waits, for how long, and who works on it; on a terminal live, until Ctrl-C."""
    with _client() as client:
        if as_json:
            _print_json(client.queues())
        elif is_once or not out.is_terminal:
            out.print(rendering.queues_page(client.queues(), out.width))
        else:
            with suppress(KeyboardInterrupt):
                _follow_queues(client)


def _follow_queues(client: Darkroom) -> None:
    """Shows the queues until Ctrl-C; what is wrong for a while stands below the last figures."""
    page: RenderableType = rendering.queues_page(client.queues(), out.width)
    with Live(page, console=out, auto_refresh=False) as live:
        while True:
            time.sleep(QUEUES_EVERY_S)
            try:
                page = rendering.queues_page(client.queues(), out.width)
                live.update(page, refresh=True)
            except ProblemError as exc:
                live.update(Group(page, rendering.problem_text(exc.problem)), refresh=True)
            except UnreachableError as exc:
                problem = {"title": "Darkroom does not answer", "detail": exc}
                live.update(Group(page, rendering.problem_text(problem)), refresh=True)


@main.group("dead-letters")
def dead_letters() -> None:
    """Look at messages that no worker could take; replay or drop them."""


numbers_argument = click.argument("numbers", nargs=-1, type=click.IntRange(1), metavar="NO...")
all_option = click.option("--all", "is_all", is_flag=True, help="All that wait for a person.")


@dead_letters.command("list")
@click.option("--kept", "is_kept", is_flag=True, help="Only those that wait for a person.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 200))
@json_option
def list_dead_letters(is_kept: bool, limit: int, as_json: bool) -> None:
    """Show the newest dead letters and what became of each."""
    with _client() as client:
        listed = client.dead_letters(outcome="kept" if is_kept else None, limit=limit)
    if as_json:
        _print_json(listed)
    else:
        out.print(rendering.dead_letters_page(listed, datetime.now(UTC)))


@dead_letters.command("show")
@click.argument("number", type=click.IntRange(1), metavar="NO")
@json_option
def show_dead_letter(number: int, as_json: bool) -> None:
    """Show one dead letter with what it says."""
    with _client() as client:
        letter = client.dead_letter(number)
    if as_json:
        _print_json(letter)
    else:
        out.print(rendering.dead_letter_details(letter, datetime.now(UTC)))


@dead_letters.command("replay")
@numbers_argument
@all_option
def replay_dead_letters(numbers: tuple[int, ...], is_all: bool) -> None:
    """Have the work of dead letters done again. Doing it twice does it once."""
    _check_numbers(numbers, is_all)
    with _client() as client:
        if is_all:
            done = client.replay_dead_letters()
            out.print(f"{done['replayed']} replayed, {done['kept']} kept")
        for number in numbers:
            letter = client.replay_dead_letter(number)
            out.print(Text(f"{number}: {letter['cause']}"))


@dead_letters.command("drop")
@numbers_argument
@all_option
def drop_dead_letters(numbers: tuple[int, ...], is_all: bool) -> None:
    """Forget dead letters for good."""
    _check_numbers(numbers, is_all)
    with _client() as client:
        if is_all:
            out.print(f"{client.drop_dead_letters()} dropped")
        for number in numbers:
            client.drop_dead_letter(number)
            out.print(f"{number}: dropped")


def _check_numbers(numbers: tuple[int, ...], is_all: bool) -> None:
    if bool(numbers) == is_all:
        raise click.UsageError("give either the numbers of dead letters or --all")


@main.command()
@data_dir_option
def backup(data_dir: Path) -> None:
    """Back up the database of a local Darkroom now; it happens every day by itself."""
    sys.exit(operate(data_dir, ["backup"], may_run=True))


@main.command()
@click.argument("name", metavar="[BACKUP]", required=False)
@click.option("--blobs-from", metavar="FOLDER|URL", help="Another blob store, to take backup and blobs from.")
@click.option("--replace", "is_replaced", is_flag=True, help="Empty the database first if it has photos.")
@click.option("--list", "is_list", is_flag=True, help="Show the backups that there are, and end.")
@data_dir_option
def restore(name: str | None, blobs_from: str | None, is_replaced: bool, is_list: bool, data_dir: Path) -> None:
    """Restore a local Darkroom from a backup: the newest, or one by its name or file.

    The status is 3 when the bytes of photos are missing; they are listed.
    """
    arguments = ["restore", *([name] if name else [])]
    if blobs_from is not None:
        url = blobs_from if urlsplit(blobs_from).scheme else Path(blobs_from).resolve().as_uri()
        arguments += ["--blobs-from", url]
    arguments += ["--replace"] if is_replaced else []
    arguments += ["--list"] if is_list else []
    sys.exit(operate(data_dir, arguments, may_run=is_list))


class _Restarts(logging.Handler):
    """Says on the terminal when the supervisor starts a process again."""

    def __init__(self, options: LocalOptions) -> None:
        super().__init__(logging.WARNING)
        self._logs = options.data_dir / "logs"

    def emit(self, record: logging.LogRecord) -> None:
        fields: Mapping[str, Any] = vars(record)
        name, pause_s = fields.get("child", "a process"), fields.get("restart_in_s")
        again = f"ended; starts again in {pause_s:g} s" if pause_s is not None else record.getMessage()
        err.print(Text.assemble(("  ! ", "yellow"), f"{name} {again} ", (f"{self._logs / name}.log", "dim")))


def _announce(options: LocalOptions) -> None:
    broker = {"embedded": "embedded broker", "rabbitmq": "RabbitMQ"}.get(options.broker) or without_password(
        options.broker
    )
    err.print(Text.assemble(("Darkroom", "bold"), (f"  {options.data_dir}, {broker}", "dim")))
    restarts = logging.getLogger("darkroom_cli.supervisor")
    restarts.addHandler(_Restarts(options))
    restarts.propagate = False


def _say_ready(options: LocalOptions) -> None:
    click.echo(f"ready: {options.url}")


def _print_verdict(wrong: list[str]) -> None:
    out.print()
    if not wrong:
        out.print(Text.assemble(("  ✓ ", "green"), "every sample is ready and found"))
    for fault in wrong:
        out.print(rendering.indented(Text.assemble(("✗ ", "red"), fault)))


def _print_hints(options: LocalOptions) -> None:
    command = "darkroom" if shutil.which("darkroom") else os.path.relpath(sys.argv[0])
    if options.url != DEFAULT_URL:
        command = f"DARKROOM_URL={options.url} {command}"
    out.print()
    for label, hint in (
        ("try", 'search "a purple heart" --open'),
        ("or", "upload ~/Pictures --watch"),
        ("or", "status"),
    ):
        # Soft-wrapped, so that it can be copied whole.
        out.print(Text.assemble((f"  {label:>3}  ", "dim"), f"{command} {hint}"), soft_wrap=True)
    out.print(Text("  Ctrl-C stops everything", "dim"))


def _client(url: str | None = None) -> Darkroom:
    return Darkroom(url or os.environ.get("DARKROOM_URL") or DEFAULT_URL, os.environ.get("DARKROOM_API_KEY") or None)


def _watch_batches(client: Darkroom, batch_ids: list[str], *, as_json: bool = False) -> bool:
    """Waits until the batches are done, shows what became of them, and returns whether nothing failed."""
    with rendering.work_progress(err) as progress:
        bar = progress.add_task("working", total=None, failed="")

        def advance(seen: Mapping[str, Batch]) -> None:
            total, done, failed = rendering.counted(seen.values())
            progress.update(bar, total=total, completed=done, failed=rendering.failed_text(failed))

        batches = client.wait(batch_ids, on_change=advance).values()
    images = [image for batch in batches for image in batch.get("images", [])]
    if as_json:
        _print_json(list(batches))
    else:
        out.print(rendering.outcome_of(images, out.width))
    return all(image["status"] != "failed" for image in images)


def _watch_image(client: Darkroom, image_id: str) -> Image:
    """The image once it is ready or failed."""
    with err.status("asking …") as shown:
        while (image := client.image(image_id))["status"] not in ("ready", "failed"):
            shown.update(f"{image['filename'] or image_id}: {image['status']} …")
            time.sleep(POLL_S)
    return image


def _print_json(answer: object) -> None:
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "darkroom"
