"""Secrets are made once, kept, and reach those alone who need them."""

import base64
import hashlib
import json
import re
import stat
from pathlib import Path

import pytest

from darkroom.settings import BrokerSettings, DatabaseSettings
from scheduler.broker_users import USERS
from scheduler.provisioning import KEPT, SECRETS, files, provision
from scheduler.signing import read_keys

KNOWN = {name: f"secret-of-{name}" for name in SECRETS}


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_keeps_every_secret(tmp_path: Path) -> None:
    provision(tmp_path)
    before = contents(tmp_path)
    provision(tmp_path)

    hashes = "rabbitmq/definitions.json"  # salted anew
    after = contents(tmp_path)
    assert {**after, hashes: ""} == {**before, hashes: ""}
    kept = json.loads(before[str(KEPT)])
    assert len(set(kept.values())) == len(SECRETS)
    assert min(map(len, kept.values())) >= 43  # 256 bits


def test_a_secret_is_rotated_alone(tmp_path: Path) -> None:
    provision(tmp_path)
    before = json.loads((tmp_path / KEPT).read_text())
    provision(tmp_path, rotate=["thumbnailer"])

    after = json.loads((tmp_path / KEPT).read_text())
    assert {name for name in SECRETS if after[name] != before[name]} == {"thumbnailer"}
    assert after["thumbnailer"] in (tmp_path / "thumbnailer/DARKROOM_BROKER_URL").read_text()


def test_a_service_that_came_with_an_upgrade_gets_its_secret(tmp_path: Path) -> None:
    provision(tmp_path)
    old = json.loads((tmp_path / KEPT).read_text())
    del old["flower"]
    (tmp_path / KEPT).chmod(0o600)
    (tmp_path / KEPT).write_text(json.dumps(old))
    provision(tmp_path)

    new = json.loads((tmp_path / KEPT).read_text())
    assert new.keys() == set(SECRETS)
    assert {name: new[name] for name in old} == old


@pytest.mark.parametrize("service", sorted({name.partition("/")[0] for name in files(KNOWN, b"salt")}))
def test_a_service_sees_its_own_secrets_only(service: str) -> None:
    allowed = {
        "gateway": {"gateway", "redis", "postgres"},
        "scheduler": {"scheduler", "redis", "postgres"},
        "thumbnailer": {"thumbnailer", "redis"},
        "embedder": {"embedder", "redis"},
        "topology": {"topology", "redis"},
        "callbacks": {"callbacks", "redis", "postgres", "webhook"},
    }
    text = "".join(content for path, content in files(KNOWN, b"salt").items() if path.startswith(f"{service}/"))
    text += "".join(base64.b64decode(secret).decode() for secret in re.findall("whsec_(.*)", text))
    seen = {name for name, secret in KNOWN.items() if secret in text}
    assert seen == (set() if service == "rabbitmq" else allowed.get(service, {service}))


def test_a_service_can_start_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provision(tmp_path)
    monkeypatch.setenv("DARKROOM_SECRETS_DIR", str(tmp_path / "gateway"))
    for name in ("BROKER", "RESULT", "DATABASE"):
        monkeypatch.delenv(f"DARKROOM_{name}_URL", raising=False)

    assert BrokerSettings().broker_url.get_secret_value().startswith("amqp://gateway:")
    assert DatabaseSettings().database_url.get_secret_value().startswith("postgresql+psycopg://darkroom:")


def test_the_secret_of_callbacks_can_sign(tmp_path: Path) -> None:
    provision(tmp_path)
    (key,) = read_keys((tmp_path / "callbacks/DARKROOM_WEBHOOK_SECRET").read_text())
    assert key.decode() == json.loads((tmp_path / KEPT).read_text())["webhook"]


def test_callbacks_are_signed_with_the_secret_before_too_until_it_is_retired(tmp_path: Path) -> None:
    def keys() -> list[bytes]:
        return list(read_keys((tmp_path / "callbacks/DARKROOM_WEBHOOK_SECRET").read_text()))

    provision(tmp_path)
    (first,) = keys()
    provision(tmp_path, rotate=["webhook"])
    second, also = keys()
    assert also == first != second
    provision(tmp_path)  # as at every start
    assert keys() == [second, first]
    provision(tmp_path, retire=True)
    assert keys() == [second]
    provision(tmp_path)
    assert keys() == [second]


def test_nobody_but_the_provisioner_may_read_what_is_kept(tmp_path: Path) -> None:
    provision(tmp_path)

    assert stat.S_IMODE((tmp_path / KEPT).stat().st_mode) == 0o400
    assert not list(tmp_path.rglob("*.new"))


def test_rabbitmq_gets_hashes_in_its_own_format() -> None:
    users = json.loads(files(KNOWN, b"salt")["rabbitmq/definitions.json"])["users"]

    assert {user["name"] for user in users} == set(USERS)
    stored = base64.b64decode(next(user for user in users if user["name"] == "gateway")["password_hash"])
    assert stored == b"salt" + hashlib.sha256(b"salt" + b"secret-of-gateway").digest()
