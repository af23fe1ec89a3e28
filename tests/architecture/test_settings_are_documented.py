"""`.env.example` and the settings classes say the same."""

import importlib
import itertools
import re
from pathlib import Path

from darkroom.settings import Settings

ROOT = Path(__file__).parents[2]
OF_NO_CLASS = {"DARKROOM_URL": "http://127.0.0.1:8000", "DARKROOM_API_KEY": "", "DARKROOM_SECRETS_DIR": ""}


def declared() -> dict[str, str | None]:
    """Every setting's variable and its default as text; None where there is no default."""
    for module in ("darkroom.settings", "gateway.settings", "scheduler.settings"):
        importlib.import_module(module)
    found: dict[str, str | None] = {}
    classes = list(Settings.__subclasses__())
    for each in classes:
        classes.extend(each.__subclasses__())
        for name, field in each.model_fields.items():
            default = field.default
            text = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
            found[f"DARKROOM_{name.upper()}"] = None if field.is_required() else text
    return found


def documented() -> dict[str, str | None]:
    """The same as `.env.example` says it."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    found: dict[str, str | None] = {}
    for line in lines:
        if match := re.fullmatch(r"(#?)(DARKROOM_[A-Z0-9_]+)=(.*)", line):
            found[match[2]] = match[3] if match[1] else None
    return found


def test_every_setting_is_in_the_example_with_its_default() -> None:
    assert documented() == declared() | OF_NO_CLASS


def test_every_setting_has_a_line_that_explains_it() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("#DARKROOM_"):
            assert before.startswith("# "), f"{line} is not explained"
