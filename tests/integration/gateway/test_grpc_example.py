"""The example client works with the proto and nothing else of Darkroom."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gateway_outcomes import finish
from gateway_pictures import picture
from gateway_serving import Served, Workers
from sqlalchemy import Engine

pytest_plugins = ["gateway_fixtures"]

ROOT = Path(__file__).parents[3]


def test_the_example_uploads_watches_and_searches_by_the_published_proto(
    serve: Callable[..., Served],
    start_workers: Callable[..., Workers],
    engine: Engine,
    redis_url: str,
    tmp_path: Path,
) -> None:
    gateway = serve(broker_url=redis_url, result_url=redis_url, relay_enabled=True)
    start_workers(redis_url, redis_url)
    (known,) = gateway.accepted(picture(1))
    finish(engine, gateway.parts.store, known["sha256"], [1.0, 0.0, 0.0])
    proto = tmp_path / "published/darkroom/rpc/v1/darkroom.proto"
    proto.parent.mkdir(parents=True)
    shutil.copy(ROOT / "shared/src/darkroom/rpc/v1/darkroom.proto", proto)
    client = shutil.copy(ROOT / "examples/grpc_client.py", tmp_path)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(picture(1))

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, client, str(tmp_path / "published"), gateway.grpc_target, str(path), "red"]
        env = os.environ | {"GRPC_VERBOSITY": "NONE"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

    done = run(photo)
    assert done.returncode == 0, done.stderr
    assert "duplicate" in done.stdout
    assert "image.accepted " in done.stdout
    assert "image.ready " in done.stdout
    assert "IMAGE_STATUS_READY" in done.stdout
    assert f"1.000 {known['id']}" in done.stdout
    photo.write_bytes(b"<html>")
    refused = run(photo)
    assert refused.returncode == 1
    assert refused.stderr.startswith("INVALID_ARGUMENT ")
