"""Writes the README's table of figures from the latest results: `python benchmarks/summary.py [--results FOLDER]`."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rounds import arguments, shown

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"
ORDER = ("thumbnails", "embeddings", "acknowledgement", "flow", "search")


def rows(document: dict[str, Any]) -> Iterator[str]:
    """A row for each comparison in which ours stands beside something else."""
    for comparison in document["comparisons"]:
        if not comparison["ratios"]:
            continue
        values = next(iter(comparison["ways"].values()))
        figure = f"{shown(statistics.median(values))} {comparison['unit']}"
        yield f"| {comparison['title']} | {figure} | {'<br>'.join(map(_described, comparison['ratios']))} |"


def _described(ratio: dict[str, Any]) -> str:
    text = f"{ratio['label']} **{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})"
    if ratio["is_met"] is None:
        return text
    bound = f"≥ {ratio['at_least']:g}" if ratio["at_least"] is not None else f"≤ {ratio['at_most']:g}"
    return f"{text}, {bound} {'✓' if ratio['is_met'] else '✗'}"


def table(folder: Path) -> str:
    """All of it as Markdown."""
    documents = [json.loads(path.read_text()) for name in ORDER if (path := folder / f"{name}.json").exists()]
    machines = {f"{each['machine']['cores']} cores, {each['machine']['processor']}" for each in documents}
    days = sorted({each["at"][:10] for each in documents})
    lines = [
        f"On {' and '.join(sorted(machines))}; {' to '.join(dict.fromkeys((days[0], days[-1])))}. Medians, with the "
        "least and the greatest of the rounds; ✗: short of what we aim at.",
        "",
        "| what | ours | beside others |",
        "|---|---|---|",
        *(row for document in documents for row in rows(document)),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replaces what stands between the README's two marks, and prints it."""
    made = table(arguments(__doc__).results)
    print(made)
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{README} has no {BEGIN.strip()} and {END}")
    README.write_text(before + begin + made + end + after)


if __name__ == "__main__":
    main()
