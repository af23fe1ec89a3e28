"""Stand-ins for all workers: one Celery worker process that answers by the contracts and does none of the work.

Run as a script by `start_workers`. It notes every call as a line of JSON in the file DARKROOM_TEST_CALLS.
"""

import base64
import json
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import current_task
from gateway_pictures import DIM, MODEL_ID

from darkroom import topology
from darkroom.celery_app import Delivery, bind, create_app
from darkroom.contracts import keys
from darkroom.contracts import messages as m
from darkroom.contracts.problems import problem
from darkroom.contracts.tasks import (
    EMBED,
    EMBED_PICTURE,
    EMBED_TEXT,
    FINALIZE,
    PREPARE,
    PREPARE_QUERY,
    RECORD_EMBEDDING,
    THUMBNAILS,
    TaskContract,
)
from darkroom.errors import PermanentError
from darkroom.settings import BrokerSettings, StorageSettings, TaskSettings
from darkroom.storage import open_blob_store

BROKEN = b"broken"
"""A search picture with these bytes in it cannot be decoded."""

FAILING, ALIEN = "fail", "alien"
"""Search texts that end the task with an error, and that are answered with another model's vector."""


@dataclass(frozen=True)
class Call:
    """One run of a task."""

    task: str
    task_id: str
    routing_key: str
    message: dict[str, Any]
    previous: Any


def calls(path: Path) -> list[Call]:
    """Every call that the workers noted."""
    return [Call(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}e", *vector)).decode()


def embed_text(message: m.EmbedText) -> m.QueryVector:
    """The first axis."""
    if message.text == FAILING:
        raise PermanentError(problem("killed-worker", "It failed", 422, "It failed."))
    model = "other@ffffffffffff" if message.text == ALIEN else message.model.id
    return m.QueryVector(model=model, vector=packed([1.0, 0.0, 0.0]))


def main() -> None:
    """Answers every task until SIGTERM."""
    app = create_app("stand-ins", BrokerSettings(), TaskSettings())
    store = open_blob_store(StorageSettings().blob_url)
    noted = Path(os.environ["DARKROOM_TEST_CALLS"])

    def prepare_query(message: m.PrepareQuery) -> m.QueryPrepared:
        if BROKEN in store.get(message.source):
            return m.QueryPrepared(problem=problem("image-corrupt", "The file is damaged", 422, "It is damaged."))
        store.put(message.proxy, b"proxy")
        return m.QueryPrepared()

    def embed_picture(message: m.EmbedPicture) -> m.QueryVector:
        """The second axis."""
        store.get(message.proxy)
        return m.QueryVector(model=message.model.id, vector=packed([0.0, 1.0, 0.0]))

    def answer(contract: TaskContract[Any, Any], function: Callable[[Any], Any]) -> None:
        def run(message: Any, delivery: Delivery) -> Any:
            key = current_task.request.delivery_info["routing_key"]
            call = Call(contract.name, delivery.task_id, key, message.to_wire(), delivery.previous)
            with noted.open("a") as file:
                file.write(json.dumps(vars(call)) + "\n")
            return function(message)

        bind(app, contract, run)

    answer(PREPARE, lambda message: m.Prepared(manifest=keys.prepared_key(message.sha256, message.recipe)))
    answer(THUMBNAILS, lambda message: m.Described(manifest=keys.described_key(message.sha256, message.recipe)))
    answer(
        EMBED, lambda message: m.Embedded(model=MODEL_ID, dim=DIM, vector=keys.embedding_key(MODEL_ID, message.sha256))
    )
    answer(FINALIZE, lambda message: m.Nothing())
    answer(RECORD_EMBEDDING, lambda message: m.Nothing())
    answer(PREPARE_QUERY, prepare_query)
    answer(EMBED_TEXT, embed_text)
    answer(EMBED_PICTURE, embed_picture)
    queues = os.environ.get("DARKROOM_TEST_QUEUES") or ",".join(topology.CONSUMED_BY)
    app.worker_main(["worker", "--pool=solo", f"--queues={queues}", "--loglevel=INFO", "--without-gossip"])


if __name__ == "__main__":
    sys.exit(main())
