"""The generated gRPC code is what the proto says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = "darkroom/rpc/v1"
GENERATED = ("darkroom_pb2.py", "darkroom_pb2.pyi", "darkroom_pb2_grpc.py")


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "--dry-run", "proto", f"OUT={tmp_path}"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (protoc,) = [line for line in recipe.splitlines() if "grpc_tools.protoc" in line]
    arguments = protoc.split()[1:]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    for name in GENERATED:
        committed = (ROOT / "shared/src" / FOLDER / name).read_text()
        assert (tmp_path / FOLDER / name).read_text() == committed, f"{name} is not up to date: run `make proto`"
