"""The JSON Schemas of what leaves the house: `python -m darkroom.contracts.schemas docs/schemas` writes them."""

import json
import sys
from pathlib import Path
from typing import Any

from darkroom.contracts.base import Message
from darkroom.contracts.callbacks import Callback
from darkroom.contracts.events import Event, ImagePrepared
from darkroom.contracts.problems import Problem

PUBLISHED: tuple[type[Message], ...] = (Event, ImagePrepared, Callback, Problem)


def schemas() -> dict[str, str]:
    """The text of each schema (draft 2020-12) by file name."""
    return {f"{message.__name__}.json": _schema(message) for message in PUBLISHED}


def _schema(message: type[Message]) -> str:
    schema = message.model_json_schema(mode="serialization")
    for part in (schema, *schema.get("$defs", {}).values()):
        # A later version may add optional fields, and whoever checks with today's schema must let them pass.
        part.pop("additionalProperties", None)
    document: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    for name, text in schemas().items():
        Path(sys.argv[1], name).write_text(text)
