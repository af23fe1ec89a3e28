"""How the bulk worker gives way where the kernel shares the cores out by sessions."""

import subprocess
import sys
from pathlib import Path

import pytest

from thumbnailer.worker import BULK_SESSION_NICENESS, give_way_as_session

CALL = "import sys, pathlib; from thumbnailer.worker import give_way_as_session as f; f(pathlib.Path(sys.argv[1]))"


@pytest.mark.parametrize(("is_leader", "written"), [(True, str(BULK_SESSION_NICENESS)), (False, "")])
def test_only_a_session_of_its_own_is_lowered(tmp_path: Path, is_leader: bool, written: str) -> None:
    autogroup = tmp_path / "autogroup"
    autogroup.touch()
    subprocess.run([sys.executable, "-c", CALL, str(autogroup)], check=True, start_new_session=is_leader)
    assert autogroup.read_text() == written


def test_a_kernel_that_knows_no_sessions_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getsid", lambda pid: 7)
    monkeypatch.setattr("os.getpid", lambda: 7)
    give_way_as_session(tmp_path / "nothing" / "autogroup")
    assert list(tmp_path.iterdir()) == []
