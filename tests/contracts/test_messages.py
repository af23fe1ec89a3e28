"""The wire format: a golden file for each message, which messages in a queue during an upgrade must still fit."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from contracts_examples import EXAMPLES, RECIPE, SHA256
from pydantic import ValidationError
from pydantic_core import to_json

from darkroom.celery_app import create_app
from darkroom.contracts import base, callbacks, events, keys, messages, problems
from darkroom.contracts.base import Frozen, Lane, Message, ThumbnailSize
from darkroom.contracts.tasks import ALL
from darkroom.database.dead_letters import Outcome
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.topology import CONSUMED_BY
from darkroom.workflow import Dispatch, embedding_backfill, image_workflow, task_ids

GOLDEN = Path(__file__).parent / "golden"


def golden(message: Message) -> dict[str, object]:
    return json.loads((GOLDEN / f"{type(message).__name__}.json").read_text())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_message_looks_on_the_wire_as_it_always_did(message: Message) -> None:
    assert message.to_wire() == golden(message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_stored_message_is_understood(message: Message) -> None:
    assert type(message).from_wire(golden(message)) == message


def from_a_newer_sender(message: object) -> object:
    """What a release would send in which every message, those within others too, has one more field."""
    match message:
        case Frozen():
            fields = {name: from_a_newer_sender(getattr(message, name)) for name in type(message).model_fields}
            return fields | {"added_later": {"in": ["any", "form"]}}
        case dict():
            return {key: from_a_newer_sender(value) for key, value in message.items()}
        case list() | tuple():
            return [from_a_newer_sender(value) for value in message]
    return message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_receiver_accepts_an_optional_field_that_a_newer_sender_added(message: Message) -> None:
    newer = to_json(from_a_newer_sender(message))
    assert newer.count(b"added_later") >= 1
    assert type(message).from_wire(json.loads(newer)) == message
    assert type(message).from_json(newer) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_receiver_does_without_the_optional_fields_that_an_older_sender_has_not(message: Message) -> None:
    fields = type(message).model_fields
    optional = {
        name: field.get_default(call_default_factory=True) for name, field in fields.items() if not field.is_required()
    }
    for left_out in [optional, *({name: default} for name, default in optional.items())]:
        older = {key: value for key, value in golden(message).items() if key not in left_out}
        assert type(message).from_wire(older) == message.model_copy(update=left_out)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_sender_cannot_misspell_a_field(message: Message) -> None:
    with pytest.raises(ValidationError, match="added_later"):
        type(message)(**(message.model_dump() | {"added_later": 1}))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_required_field_is_missed(message: Message) -> None:
    for name, field in type(message).model_fields.items():
        if field.is_required():
            with pytest.raises(ValidationError, match=name):
                type(message).from_wire({key: value for key, value in golden(message).items() if key != name})


def test_a_receiver_without_a_field_reads_a_sender_that_has_it() -> None:
    """The other direction of a rolling upgrade: a field with a default is absent from an older sender's message."""

    class NewerPrepare(messages.Prepare):
        crop: str = "none"

    old = json.loads((GOLDEN / "Prepare.json").read_text())
    assert NewerPrepare.from_wire(old).crop == "none"


def test_every_message_has_an_example() -> None:
    abstract = {"Message", "Work"}
    declared = {
        name
        for module in (messages, callbacks, events, problems)
        for name, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, Message) and name not in abstract
    }
    assert declared == {type(example).__name__ for example in EXAMPLES}


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EXAMPLES[0].lane = "bulk"  # type: ignore[attr-defined]


def test_task_names_and_queues_are_what_they_always_were() -> None:
    expected = json.loads((GOLDEN / "tasks.json").read_text())
    actual = {
        each.name: {
            "queue": each.queue,
            "has_lanes": each.has_lanes,
            "arguments": each.arguments.__name__,
            "result": each.result.__name__,
        }
        for each in ALL
    }
    assert actual == expected


def stored_words() -> dict[str, list[str]]:
    """Every value of the enumerations that stand in messages and rows."""
    kinds = {
        each
        for module in (base, messages, events)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, StrEnum) and each is not StrEnum
    }
    return {kind.__name__: [value.value for value in kind] for kind in kinds | {Outcome}}


def test_no_word_that_is_stored_is_forgotten() -> None:
    expected = json.loads((GOLDEN / "words.json").read_text())
    assert stored_words() == expected, "a release reads a new word before the next one writes it; none is removed"


def stored_names() -> dict[str, str]:
    """Where the blobs and tasks of one photo are looked for."""
    renditions = {f"thumbnail {size}": keys.thumbnail_key(SHA256, RECIPE, size) for size in ThumbnailSize}
    tasks = {f"task {step}": task_id for step, task_id in task_ids(SHA256, 2).items()}
    return {
        "original": keys.original_key(SHA256),
        "proxy": keys.proxy_key(SHA256, RECIPE),
        "prepared": keys.prepared_key(SHA256, RECIPE),
        "described": keys.described_key(SHA256, RECIPE),
        "embedding": keys.embedding_key("tiny@0123456789ab", SHA256),
        "backup": keys.backup_key("darkroom-20260102T030405Z.dump"),
        **renditions,
        **tasks,
    }


def test_blobs_and_tasks_are_found_under_the_names_that_they_always_had() -> None:
    assert stored_names() == json.loads((GOLDEN / "names.json").read_text())


@pytest.fixture
def app() -> Celery:
    nowhere = BrokerSettings(broker_url="amqp://nowhere//", result_url="redis://nowhere/0")
    return create_app("contracts", nowhere, TaskSettings())


def canvases(app: Celery) -> dict[str, Any]:
    """What the dispatcher publishes: whole workflows, of which the workers send the rest."""
    dispatch = Dispatch(SHA256, 2, Lane.BULK, RECIPE)
    made = {"photo": image_workflow(app, dispatch), "backfill": embedding_backfill(app, SHA256, RECIPE, 2)}
    return {name: json.loads(json.dumps(canvas)) for name, canvas in made.items()}


def test_a_workflow_looks_on_the_wire_as_it_always_did(app: Celery) -> None:
    assert canvases(app) == json.loads((GOLDEN / "canvases.json").read_text())


@pytest.mark.parametrize(
    "golden",
    [
        "canvases.json",
        "canvases-one-finalize.json",  # before bulk had a queue of its own there: such messages may still wait
    ],
)
def test_every_step_of_a_stored_workflow_is_understood(app: Celery, golden: str) -> None:
    contracts = {contract.name: contract for contract in ALL}

    def steps(node: Any) -> list[dict[str, Any]]:
        """The task calls anywhere in a stored canvas."""
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        found = [step for each in inner for step in steps(each)]
        return [*found, node] if isinstance(node, dict) and node.get("task") in contracts else found

    stored = json.loads((GOLDEN / golden).read_text())
    understood = [
        (step["task"], contracts[step["task"]].arguments.from_wire(step["kwargs"]["message"])) for step in steps(stored)
    ]
    assert len(understood) == 6
    assert {step["options"]["queue"] for step in steps(stored)} <= set(CONSUMED_BY)
    for canvas in stored.values():
        assert json.loads(json.dumps(app.signature(canvas))) == canvas
