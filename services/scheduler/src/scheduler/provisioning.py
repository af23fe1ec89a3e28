"""The secrets of an installation: made at its first start, kept since, and given to those who need them alone.

Each service gets a folder with its files and sees no other. What everything follows from is in a folder of its own.
"""

import base64
import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from scheduler.broker_users import USERS, definitions

DATABASE, RESULTS, WEBHOOK = "postgres", "redis", "webhook"
WEBHOOK_BEFORE = "webhook-before"
"""The secret that callbacks are signed with as well, until every receiver has the new one."""

SECRETS = (DATABASE, RESULTS, WEBHOOK, *USERS)
"""Every password by the name of what asks for it. All are made of letters, digits, `-` and `_`."""

KEPT = Path("provision/secrets.json")
"""Where the secrets themselves are kept; no service gets this folder."""

WITH_DATABASE = ("gateway", "scheduler", "callbacks")


def provision(
    folder: Path,
    *,
    rotate: Collection[str] = (),
    retire: bool = False,
    make: Callable[[], str] = lambda: secrets.token_urlsafe(32),
) -> None:
    """Writes every service's files below `folder`; makes the secrets that are missing and those to `rotate`.

    Callbacks are signed with the secret before as well, from its rotation until one is told to `retire` it.
    """
    kept = folder / KEPT
    known: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    before = known.get(WEBHOOK if WEBHOOK in rotate else WEBHOOK_BEFORE)
    known = {name: make() if name in rotate or name not in known else known[name] for name in SECRETS}
    if before and not retire:
        known[WEBHOOK_BEFORE] = before
    _write(kept, json.dumps(known), mode=0o400)
    for name, content in files(known, salt=secrets.token_bytes(4)).items():
        # For all in the container that has the volume; their user is not ours.
        _write(folder / name, content, mode=0o444)


def files(known: Mapping[str, str], salt: bytes) -> dict[str, str]:
    """The content of each file by its path: `<service>/<setting>`, and what the servers read."""
    found = {
        f"{DATABASE}/password": known[DATABASE],
        f"{RESULTS}/redis.conf": f"requirepass {known[RESULTS]}\n",
        f"{RESULTS}/password": known[RESULTS],
        "rabbitmq/definitions.json": definitions(known, salt),
        "monitor/password": known["monitor"],
        "callbacks/DARKROOM_WEBHOOK_SECRET": " ".join(
            f"whsec_{base64.b64encode(known[name].encode()).decode()}"
            for name in (WEBHOOK, WEBHOOK_BEFORE)
            if name in known
        ),
    }
    for user in USERS.keys() - {"monitor"}:
        found[f"{user}/DARKROOM_BROKER_URL"] = f"amqp://{user}:{known[user]}@rabbitmq:5672//"
        if user != "flower":
            found[f"{user}/DARKROOM_RESULT_URL"] = f"redis://:{known[RESULTS]}@redis:6379/0"
    for user in WITH_DATABASE:
        found[f"{user}/DARKROOM_DATABASE_URL"] = f"postgresql+psycopg://darkroom:{known[DATABASE]}@postgres/darkroom"
    return found


def _write(path: Path, content: str, mode: int) -> None:
    """Replaces a file at once: whoever reads it meanwhile sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(mode)
    new.replace(path)
