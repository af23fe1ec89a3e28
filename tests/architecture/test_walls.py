"""The walls between the packages, read from the source."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "darkroom": ROOT / "shared",
    "gateway": ROOT / "services/gateway",
    "thumbnailer": ROOT / "services/thumbnailer",
    "embedder": ROOT / "services/embedder",
    "scheduler": ROOT / "services/scheduler",
    "darkroom_cli": ROOT / "cli",
}


def test_no_import_crosses_a_wall() -> None:
    """import-linter's contracts in pyproject.toml; the packages are installed editable, so it reads this source."""
    for package, folder in PACKAGES.items():
        spec = subprocess.run(
            [sys.executable, "-c", f"import {package}; print({package}.__file__)"], capture_output=True, text=True
        )
        assert Path(spec.stdout.strip()).is_relative_to(folder), f"{package} is not installed editable from {folder}"
    lint = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_import_linter_sees_a_crossing(tmp_path: Path) -> None:
    """The check above can fail: a package that imports across a wall is reported."""
    for name, source in {"left": "import right", "right": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_packages =\n  left\n  right\n"
        "[importlinter:contract:1]\nname = Apart\ntype = independence\nmodules =\n  left\n  right\n"
    )
    lint = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 1
    assert "left is not allowed to import right" in re.sub(r"\s+", " ", checked.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_environment_is_read_in_settings_only(package: str) -> None:
    allowed = {"settings.py"}
    if package == "embedder":
        allowed |= {"worker.py"}  # tells the tokenizers library, which reads nothing else
    if package == "darkroom_cli":
        # These pass it on.
        allowed |= {"local.py", "rabbitmq.py", "postgres.py", "redis.py", "process.py", "forking.py", "main.py"}
    for path in (PACKAGES[package] / "src").rglob("*.py"):
        if path.name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_environ = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            assert not is_environ, f"{path.relative_to(ROOT)}:{node.lineno} reads the environment"


@pytest.mark.parametrize("package", PACKAGES)
def test_production_code_does_not_validate_with_assert(package: str) -> None:
    for path in (PACKAGES[package] / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path.relative_to(ROOT)}:{node.lineno} asserts"


@pytest.mark.parametrize(
    ("folder", "may_need_the_database"),
    [
        ("services/gateway", True),
        ("services/scheduler", True),
        ("services/thumbnailer", False),
        ("services/embedder", False),
        ("cli", False),
    ],
)
def test_only_gateway_and_scheduler_ask_for_the_database_extra(folder: str, may_need_the_database: bool) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    asks = any("darkroom-shared[database]" in requirement for requirement in project["dependencies"])
    assert asks == may_need_the_database
