"""What makes a rolling upgrade safe: the last release works on the new schema, and reads what the next one stores."""

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ROOT / "shared/src/darkroom/database/migrations/versions"
MIGRATIONS = sorted(path.stem for path in VERSIONS.glob("0*.py"))

BREAKS_THE_LAST_RELEASE = {
    r"\bDROP\b(?! (FUNCTION|TRIGGER|INDEX)\b)": "it may still read or write what is gone",
    r"\bRENAME\b": "it knows the old name alone",
    r"\bSET NOT NULL\b": "it may leave the column out",
    r"\bALTER COLUMN \w+ (SET DATA )?TYPE\b": "it writes the old type",
    r"\bADD COLUMN (?=[^,;]*\bNOT NULL\b)(?![^,;]*\bDEFAULT\b)": "it does not fill the column: give it a default",
    r"\bADD (CONSTRAINT|CHECK|UNIQUE|FOREIGN|PRIMARY)\b": "what it writes may not keep to it",
    r"\bTRUNCATE\b|\bDELETE FROM\b": "it may be using the rows",
}


def statements(migration: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SQL that a migration runs forwards, one statement each, without comments."""
    module = importlib.import_module(f"darkroom.database.migrations.versions.{migration}")
    ran: list[str] = []
    monkeypatch.setattr(module, "op", SimpleNamespace(execute=ran.append))
    module.upgrade()
    return [" ".join(part.split()) for part in re.sub(r"--.*", "", ";".join(ran)).split(";") if part.strip()]


def faults(statement: str, own_tables: set[str]) -> list[str]:
    """Why the release before could not go on with a statement; `own_tables` are new in the same migration."""
    found = [why for pattern, why in BREAKS_THE_LAST_RELEASE.items() if re.search(pattern, statement)]
    unique = re.match(r"CREATE UNIQUE INDEX \w+ ON (\w+)", statement)
    if unique and unique[1] not in own_tables:
        found.append("it may write the same value twice")
    return found


@pytest.mark.parametrize("migration", MIGRATIONS[1:])
def test_a_migration_only_adds(migration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = statements(migration, monkeypatch)
    own_tables = {match[1] for statement in ran if (match := re.match(r"CREATE TABLE (\w+)", statement))}
    assert ran
    assert {statement: why for statement in ran if (why := faults(statement, own_tables))} == {}


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE images",
        "ALTER TABLE images DROP COLUMN filename",
        "ALTER TABLE images RENAME COLUMN filename TO name",
        "ALTER TABLE images ALTER COLUMN filename SET NOT NULL",
        "ALTER TABLE images ALTER COLUMN bytes TYPE integer",
        "ALTER TABLE images ADD COLUMN owner text NOT NULL",
        "ALTER TABLE images ADD CONSTRAINT named CHECK (filename IS NOT NULL)",
        "CREATE UNIQUE INDEX images_once ON images (sha256)",
        "DELETE FROM images",
    ],
)
def test_what_would_break_the_last_release_is_noticed(statement: str) -> None:
    assert faults(statement, set())


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE images ADD COLUMN owner text NOT NULL DEFAULT ''",
        "ALTER TABLE images ADD COLUMN owner text CHECK (owner <> '')",
        "CREATE UNIQUE INDEX owners_once ON owners (name)",
        "CREATE INDEX images_by_owner ON images (owner)",
    ],
)
def test_what_only_adds_passes(statement: str) -> None:
    assert faults(statement, {"owners"}) == []


def test_what_is_stored_is_read_in_one_way_that_lets_later_fields_pass() -> None:
    """A message's own `model_validate_json` would refuse a field that a newer release has added."""
    allowed = {ROOT / "shared/src/darkroom/contracts/base.py", ROOT / "services/gateway/src/gateway/problems.py"}
    for path in {*ROOT.glob("shared/src/**/*.py"), *ROOT.glob("services/*/src/**/*.py")} - allowed:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert "model_validate_json" not in names, f"{path.name}: use Message.from_json"
