"""Two ways to take an upload, for `guides.py`: everything in the request, or handed to workers."""

import argparse
import os
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import uvicorn
from guide_worker import EXCHANGE, create_app, embedded, model, prepared
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def create_web(broker_url: str, folder: Path, model_name: str) -> Starlette:
    """`POST /in-request` answers when the photo is done; `POST /handed` when its work is on the broker."""
    celery = create_app(broker_url)
    turn = threading.Lock()

    def do_it_all(data: bytes, headers: dict[str, str]) -> Response:
        proxy = prepared(data)
        with turn:  # one model, and not for two threads at once
            embedded([proxy], model_name, threads=1)
        return Response(status_code=201)

    def hand_on(data: bytes, headers: dict[str, str]) -> Response:
        path = folder / f"{uuid4().hex}.jpg"
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        arguments = {"run_id": headers["run"], "number": 0, "path": str(path), "then": headers["then"]}
        celery.send_task("prepare", kwargs=arguments, exchange=EXCHANGE.name, routing_key=headers["queue"])
        return Response(status_code=202)

    def route(path: str, work: Callable[[bytes, dict[str, str]], Response]) -> Route:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(work, await request.body(), dict(request.headers))

        return Route(path, answer, methods=["POST"])

    model(model_name, 1).warm_up(1)
    return Starlette(routes=[route("/in-request", do_it_all), route("/handed", hand_on)])


def main() -> None:
    """Serves until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    web = create_web(options.broker, options.folder, options.model)
    uvicorn.run(web, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
