"""A page with found pictures that opens without the gateway: the thumbnails are in it."""

import tempfile
import webbrowser
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from darkroom_cli.client import Darkroom, Found, Picture

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.1rem; font-weight: 600; margin: 2.5rem 0 1rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; }
.print { aspect-ratio: 1; position: relative; border-radius: .5rem; background: #8881; }
img { position: absolute; inset: 0; margin: auto; max-width: 100%; max-height: 100%; border-radius: .25rem;
  background: repeating-conic-gradient(#8883 0 25%, #fff 0 50%) 0 0 / 1rem 1rem; }
figcaption { display: flex; justify-content: space-between; gap: .5rem; margin-top: .4rem; }
.name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.score { font-variant-numeric: tabular-nums; color: GrayText; }
.id { font: .7rem ui-monospace, monospace; color: GrayText; overflow-wrap: anywhere; }
"""


class Section(NamedTuple):
    """One search on the sheet: its heading, what it found, and each thumbnail by image id."""

    heading: str
    found: Found
    thumbnails: dict[str, Picture]


def section(client: Darkroom, heading: str, found: Found) -> Section:
    """The search's results with their thumbnails."""
    ids = [hit["image"]["id"] for hit in found["results"] if hit["image"]["thumbnails"]]
    return Section(heading, found, {image_id: client.thumbnail(image_id) for image_id in ids})


def page(sections: Sequence[Section]) -> str:
    """The sheet as one HTML document."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(', '.join(part.heading for part in sections))} · Darkroom</title><style>{_STYLE}</style>"
        f"<body>{''.join(_section_html(part) for part in sections)}</body></html>\n"
    )


def show(sections: Sequence[Section]) -> Path:
    """Writes the sheet to a file, opens it in the browser and returns its path."""
    with tempfile.NamedTemporaryFile("w", prefix="darkroom-", suffix=".html", delete=False, encoding="utf-8") as file:
        file.write(page(sections))
    path = Path(file.name)
    webbrowser.open(path.as_uri())
    return path


def _section_html(part: Section) -> str:
    prints = "".join(_print_html(part, number) for number in range(len(part.found["results"])))
    return f'<h1>{escape(part.heading)}</h1><div class="sheet">{prints or "Nothing found."}</div>'


def _print_html(part: Section, number: int) -> str:
    hit = part.found["results"][number]
    image = hit["image"]
    name = escape(image["filename"] or image["id"])
    picture = part.thumbnails.get(image["id"])
    shown = ""
    if picture is not None:
        source = f"data:{escape(picture.media_type)};base64,{b64encode(picture.data).decode()}"
        shown = f'<img src="{source}" alt="{name}">'
    return (
        f'<figure><div class="print">{shown}</div><figcaption><span class="name" title="{name}">{name}</span>'
        f'<span class="score">{hit["score"]:.3f}</span></figcaption>'
        f'<div class="id">{escape(image["id"])}</div></figure>'
    )
