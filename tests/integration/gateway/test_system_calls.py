"""Health, status, reports, the pages, and what is answered to everything else."""

import json
import re
from collections.abc import Callable

import httpx
import pytest
from conftest import eventually
from gateway_outcomes import finish, make_active
from gateway_pictures import MODEL_ID, picture
from gateway_serving import Served
from sqlalchemy import Engine, text

from darkroom.database.upkeep import job_finished, job_scheduled, job_started
from darkroom_cli.servers.ports import reserve_port
from gateway.receiving import FILE_FIELD

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).rpartition("/")[2]


def test_the_gateway_is_ready_without_broker_redis_and_model(gateway: Served) -> None:
    assert gateway.http.get("/healthz").json() == {"status": "ok"}
    assert gateway.http.get("/readyz").json() == {
        "ready": True,
        "database": True,
        "storage": True,
        "broker": False,
        "results": False,
        "model": None,
        "photo_ready": False,
    }


def test_a_photo_could_be_taken_through_once_a_model_is_there(
    serve: Serve, broker_url: str, redis_url: str, engine: Engine
) -> None:
    gateway = serve(broker_url=broker_url, result_url=redis_url, dispatcher_enabled=True)
    ready = eventually(lambda: (answer := gateway.http.get("/readyz").json()).get("broker") and answer)
    assert (ready["results"], ready["model"], ready["photo_ready"]) == (True, None, False)
    make_active(engine)
    ready = gateway.http.get("/readyz").json()
    assert (ready["model"], ready["photo_ready"]) == (MODEL_ID, True)


def test_the_gateway_is_not_ready_without_its_database(serve: Serve) -> None:
    gateway = serve(database_url=f"postgresql+psycopg://x@127.0.0.1:{reserve_port()}/x")
    for path in ("/readyz", "/v1/ledger", "/v1/status", "/v1/images"):
        answer = gateway.http.get(path)
        assert (answer.status_code, slug(answer)) == (503, "database-unavailable")
        assert answer.headers["Retry-After"] == "2"
    assert gateway.http.get("/healthz").status_code == 200


def test_the_gateway_is_not_ready_before_the_migrations(serve: Serve, engine: Engine) -> None:
    gateway = serve()
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    for path in ("/readyz", "/v1/ledger"):
        answer = gateway.http.get(path)
        assert (answer.status_code, slug(answer)) == (503, "database-unavailable")


def test_status_shows_jobs_models_ledger_and_backlog(gateway: Served, engine: Engine) -> None:
    ready, _ = gateway.accepted(picture(1), picture(2))
    finish(engine, gateway.parts.store, ready["sha256"], [1.0, 0.0, 0.0])
    make_active(engine, "next@ffffffffffff")
    with engine.begin() as connection:
        now = connection.scalar(text("SELECT now()"))
        job_scheduled(connection, "scheduler.reconcile", now)
        job_started(connection, "scheduler.reconcile")
        job_finished(connection, "scheduler.reconcile", "nothing was lost", "it is late", is_success=True)
    status = gateway.http.get("/v1/status").json()
    assert status["version"] == "0.1.0"
    assert status["ledger"]["accepted"] == 2
    assert (status["dispatcher"]["waiting"], status["dispatcher"]["backfills"]) == (1, 0)
    assert status["dispatcher"]["oldest_wait_s"] > 0
    assert status["store"]["oldest_check_s"] >= 0
    active, filling = status["models"]
    assert (active["id"], active["state"], active["covered"], active["total"]) == (MODEL_ID, "active", 1, 1)
    assert (filling["state"], filling["covered"], filling["total"]) == ("filling", 0, 1)
    (job,) = status["jobs"]
    assert (job["name"], job["summary"], job["alarm"]) == ("scheduler.reconcile", "nothing was lost", "it is late")
    assert job["succeeded_at"]


def test_reports_come_newest_first(gateway: Served, engine: Engine) -> None:
    assert gateway.http.get("/v1/reports").json() == {"reports": []}
    with engine.begin() as connection:
        for week in (1, 2, 3):
            connection.execute(
                text(
                    "INSERT INTO usage_reports (period_start, period_end, report) VALUES "
                    "(timestamptz '2026-01-05Z' + :n * interval '7 days', now(), cast(:report AS jsonb))"
                ),
                {"n": week, "report": json.dumps({"photos": week})},
            )
    reports = gateway.http.get("/v1/reports", params={"limit": 2}).json()["reports"]
    assert [one["report"] for one in reports] == [{"photos": 3}, {"photos": 2}]
    assert reports[0]["period_start"].startswith("2026-01-26")


def test_every_other_path_and_method_is_a_problem(gateway: Served) -> None:
    missing = gateway.http.get("/v1/nothing")
    assert (missing.status_code, slug(missing)) == (404, "no-such-path")
    wrong = gateway.http.put("/v1/images")
    assert (wrong.status_code, slug(wrong)) == (405, "method-not-allowed")
    assert wrong.headers["Allow"]


def test_openapi_says_what_there_is_and_nothing_of_later(gateway: Served) -> None:
    document = gateway.http.get("/openapi.json").json()
    calls = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert calls == {
        "POST /v1/images",
        "GET /v1/images",
        "GET /v1/images/{image_id}",
        "DELETE /v1/images/{image_id}",
        "POST /v1/images/{image_id}:retry",
        "GET /v1/images/{image_id}/events",
        "GET /v1/images/{image_id}/trace",
        "GET /v1/events",
        "GET /v1/images/{image_id}/original",
        "GET /v1/images/{image_id}/thumbnails/{size}",
        "GET /v1/batches/{batch_id}",
        "GET /v1/batches/{batch_id}/callbacks",
        "POST /v1/search",
        "POST /v1/search:image",
        "GET /v1/ledger",
        "GET /v1/tasks/{task_id}",
        "POST /v1/probes/{kind}",
        "GET /v1/status",
        "GET /v1/reports",
        "GET /v1/queues",
        "GET /v1/dead-letters",
        "DELETE /v1/dead-letters",
        "POST /v1/dead-letters:replay",
        "GET /v1/dead-letters/{number}",
        "DELETE /v1/dead-letters/{number}",
        "POST /v1/dead-letters/{number}:replay",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }
    form = document["paths"]["/v1/images"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {FILE_FIELD, "lane", "tags", "external_id", "callback_url"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], f"{path} {status}"


def test_the_pages_load_everything_from_here(gateway: Served, subtests: pytest.Subtests) -> None:
    for path in ("/", "/docs"):
        with subtests.test(path):
            page = gateway.http.get(path)
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            policy = page.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
            assets = [one for one in linked if one.startswith("/web/")]
            assert len(assets) == 2
            for asset in assets:
                answer = gateway.http.get(asset)
                assert answer.status_code == 200
                assert answer.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
                assert "://" not in answer.text
            assert not [one for one in linked if "://" in one]
            assert not re.search(r"<[^>]+ (style|on[a-z]+)=", page.text), "the policy would forbid it"


def test_only_the_pages_own_files_are_served(gateway: Served) -> None:
    for name in ("nothing.css", "..%2fsettings.py", "..%2f..%2fmain.py", "home", ".html"):
        assert gateway.http.get(f"/web/{name}").status_code == 404, name
