"""The wire format: a golden file for each message, which messages in a queue during an upgrade must still fit."""

import json
from pathlib import Path

import pytest
from contracts_examples import EXAMPLES
from pydantic import ValidationError

from darkroom.contracts import callbacks, events, messages, problems
from darkroom.contracts.base import Message
from darkroom.contracts.tasks import ALL

GOLDEN = Path(__file__).parent / "golden"


def golden(message: Message) -> dict[str, object]:
    return json.loads((GOLDEN / f"{type(message).__name__}.json").read_text())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_message_looks_on_the_wire_as_it_always_did(message: Message) -> None:
    assert message.to_wire() == golden(message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_stored_message_is_understood(message: Message) -> None:
    assert type(message).from_wire(golden(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda each: type(each).__name__)
def test_a_receiver_accepts_an_optional_field_that_a_newer_sender_added(message: Message) -> None:
    assert type(message).from_wire(golden(message) | {"added_later": 1}) == message


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
