"""The published JSON Schemas are those of the messages."""

import json
from pathlib import Path

import pytest

from darkroom.contracts.schemas import PUBLISHED, schemas

DOCS = Path(__file__).parents[2] / "docs" / "schemas"
GOLDEN = Path(__file__).parent / "golden"


def test_the_published_schemas_are_up_to_date() -> None:
    written = {path.name: path.read_text() for path in DOCS.glob("*.json")}
    assert written == schemas(), "run: python -m darkroom.contracts.schemas docs/schemas"


@pytest.mark.parametrize("name", [message.__name__ for message in PUBLISHED])
def test_a_schema_knows_every_field_and_lets_later_ones_pass(name: str) -> None:
    schema = json.loads((DOCS / f"{name}.json").read_text())
    message = json.loads((GOLDEN / f"{name}.json").read_text())
    assert message.keys() <= schema["properties"].keys()
    assert set(schema["required"]) <= message.keys()
    assert '"additionalProperties": false' not in json.dumps(schema)
