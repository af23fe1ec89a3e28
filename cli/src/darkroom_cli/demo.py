"""The demo: samples through a running Darkroom, a table of what each became, and searches with a known right answer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from rich.console import Console
from rich.text import Text

from darkroom_cli import contact_sheet, rendering
from darkroom_cli.client import Batch, Darkroom, Found, Image
from darkroom_cli.samples import CREAM, SAMPLES, Sample, draw, write_samples
from darkroom_cli.uploading import Journal, upload_files

TIMEOUT_S = 300.0
HITS = 3

TEXTS = {"a red circle": "red-circle-turned.jpg", "blue star": "blue-star.webp"}
"""The searches by text, and the sample that each must find first."""

PICTURE_QUERY = ("turquoise", "drop")
"""The search by picture: drawn anew, no sample, but like one of them."""
PICTURE_ANSWER = "turquoise-drop.heic"


@dataclass(frozen=True)
class Search:
    """One search of the demo: how it is called, what came, and what had to come first."""

    heading: str
    found: Found
    expected: str


def show_around(client: Darkroom, console: Console, folder: Path) -> tuple[list[str], list[contact_sheet.Section]]:
    """Uploads the samples and searches them; returns what was wrong, and the searches for a contact sheet.

    The samples and the query picture are written to `folder`.
    """
    tag = f"demo-{uuid4().hex[:8]}"  # of this run: the same samples may be there from the last one
    with console.status("drawing the samples …"):
        paths = write_samples(folder)
    wrong, batches = _upload(client, console, paths, tag)
    images = {image["filename"] or "": image for batch in batches for image in batch.get("images", [])}
    console.print()
    console.print(rendering.indented(rendering.images_table(images.values(), console.width)))
    for sample in SAMPLES:
        wrong += faults_of(sample, images.get(sample.filename))
    wrong += _thumbnail_faults(client, images.values())

    query = folder / "query.png"
    draw(*PICTURE_QUERY, (500, 420), CREAM, fill=0.3, tilt=math.radians(7)).save(query)
    searches = [Search(f"“{text}”", client.search(text, limit=8, tags=[tag]), answer) for text, answer in TEXTS.items()]
    heading = f"a drawing of a {' '.join(PICTURE_QUERY)}"
    searches.append(Search(heading, client.search_image(query, limit=8, tags=[tag]), PICTURE_ANSWER))
    for search in searches:
        _print_search(console, search)
        wrong += search_faults(search)

    ledger = client.ledger()
    console.print()
    console.print(rendering.indented(rendering.ledger_table(ledger)))
    if not rendering.adds_up(ledger):
        wrong.append(f"the ledger does not add up: {ledger}")
    return wrong, [contact_sheet.section(client, search.heading, search.found) for search in searches]


def _upload(client: Darkroom, console: Console, paths: Sequence[Path], tag: str) -> tuple[list[str], list[Batch]]:
    """Uploads the samples and waits until all are done; returns what was refused and the batches."""
    journal = Journal(paths[0].parent / "upload.json")
    with rendering.work_progress(console) as progress:
        bar = progress.add_task(f"{len(paths)} samples", total=len(paths), failed="")

        def advance(seen: Mapping[str, Batch]) -> None:
            _, done, failed = rendering.counted(seen.values())
            progress.update(bar, completed=done, failed=rendering.failed_text(failed))

        result = upload_files(
            client, paths, journal=journal, lane="interactive", tags=["demo", tag], on_sent=lambda _: None
        )
        journal.remove()
        batches = client.wait(result.batch_ids, on_change=advance, timeout_s=TIMEOUT_S)
    return [f"{path.name} was refused: {problem.get('detail')}" for path, problem in result.refused], [
        *batches.values()
    ]


def faults_of(sample: Sample, image: Image | None) -> list[str]:
    """What is wrong with what a sample became; empty when nothing is."""
    if image is None:
        return [f"{sample.filename} is missing"]
    if image["status"] != "ready":
        cause = (image["error"] or {}).get("detail", "no cause given")
        return [f"{sample.filename} is {image['status']}: {cause}"]
    faults = []
    if image["format"] != sample.format:
        faults.append(f"{sample.filename} was taken for {image['format']}")
    if (image["width"], image["height"]) != sample.size:
        faults.append(f"{sample.filename} has {rendering.dimensions(image)}, not {rendering.pixels_text(*sample.size)}")
    thumbnails = image["thumbnails"]
    if missing := [size for size in rendering.SIZES if size not in thumbnails]:
        faults.append(f"{sample.filename} has no thumbnail {', '.join(missing)}")
    if not image["embeddings"]:
        faults.append(f"{sample.filename} has no embedding")
    return faults


def search_faults(search: Search) -> list[str]:
    """What is wrong with a search's answer; empty when the right picture came first."""
    names = [hit["image"]["filename"] for hit in search.found["results"]]
    if names[:1] == [search.expected]:
        return []
    found = ", ".join(str(name) for name in names[:HITS]) or "nothing"
    return [f"the search for {search.heading} should find {search.expected} first and found {found}"]


def _thumbnail_faults(client: Darkroom, images: Iterable[Image]) -> list[str]:
    faults = []
    for image in images:
        for size, thumbnail in image["thumbnails"].items():
            picture = client.thumbnail(image["id"], size)
            if len(picture.data) != thumbnail["bytes"] or not picture.media_type.startswith("image/"):
                faults.append(f"{image['filename']}: its thumbnail {size} is not what the image says")
    return faults


def _print_search(console: Console, search: Search) -> None:
    console.print()
    console.print(Text.assemble("  search: ", (search.heading, "bold")))
    for number, hit in enumerate(search.found["results"][:HITS]):
        image = hit["image"]
        is_right = number == 0 and image["filename"] == search.expected
        mark = ("✓ ", "green") if is_right else ("✗ ", "red") if number == 0 else "  "
        console.print(Text.assemble("  ", mark, f"{hit['score']:.3f}  ", image["filename"] or "?"))
