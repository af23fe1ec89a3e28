"""`docs/problems.md` and the code name the same problem types."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLUG = re.compile(r"[a-z]+(-[a-z]+)+")
MAKERS = {"problem", "of", "PictureProblem"}


def raised() -> set[str]:
    """The slugs that are the first argument of something that makes a problem, or assigned to a `slug`."""
    found: set[str] = set()
    for path in [*ROOT.glob("services/*/src/**/*.py"), *ROOT.glob("shared/src/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in MAKERS:
                    found.add(str(node.args[0].value))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                names = [getattr(target, "id", "") for target in node.targets[0].elts]
                if "slug" in names and isinstance(node.value, ast.Tuple):
                    found.add(ast.literal_eval(node.value.elts[names.index("slug")]))
    return {slug for slug in found if SLUG.fullmatch(slug)}


def documented() -> set[str]:
    rows = [line for line in (ROOT / "docs/problems.md").read_text().splitlines() if line.startswith("| `")]
    return {slug for row in rows for slug in re.findall(r"`([a-z-]+)`", row.split("|")[1])}


def test_every_problem_type_is_documented_and_no_other() -> None:
    assert len(raised()) > 40
    assert documented() == raised()
