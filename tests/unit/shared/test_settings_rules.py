"""Settings are frozen, come from DARKROOM_*, and refuse combinations that cannot work."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from darkroom.contracts.base import OutputFormat
from darkroom.settings import BrokerSettings, LimitSettings, ModelSettings, RenderSettings, TaskSettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DARKROOM_")]:
        monkeypatch.delenv(name)


def test_settings_cannot_be_changed() -> None:
    settings = LimitSettings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.max_pixels = 1  # type: ignore[misc]


def test_a_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MAX_PIXELS", "12")

    assert LimitSettings().max_pixels == 12


def test_a_blank_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MAX_PIXELS", "")
    monkeypatch.setenv("DARKROOM_MODEL", "")

    assert LimitSettings().max_pixels == 100_000_000
    assert ModelSettings().model == "bundled"


def test_a_blank_variable_without_a_default_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_BROKER_URL", "")
    monkeypatch.setenv("DARKROOM_RESULT_URL", "redis://127.0.0.1:1/0")

    with pytest.raises(ValidationError, match="broker_url"):
        BrokerSettings()


def test_a_secret_is_not_shown() -> None:
    settings = BrokerSettings(broker_url="redis://:geheim@h/0", result_url="redis://:geheim@h/0")

    assert "geheim" not in repr(settings) + str(settings)


@pytest.mark.parametrize(("soft_s", "hard_s"), [(30, 30), (31, 30)])
def test_a_soft_limit_that_is_not_below_the_hard_one_is_refused_by_name_and_value(soft_s: int, hard_s: int) -> None:
    with pytest.raises(ValidationError) as refused:
        TaskSettings(task_soft_limit_s=soft_s, task_hard_limit_s=hard_s)

    assert f"DARKROOM_TASK_SOFT_LIMIT_S ({soft_s})" in str(refused.value)
    assert f"DARKROOM_TASK_HARD_LIMIT_S ({hard_s})" in str(refused.value)


@pytest.mark.parametrize(("retries", "chain_s"), [(0, 0), (1, 2), (2, 5), (3, 10)])
def test_the_deadline_of_a_step_is_its_hard_limit_or_the_longest_retry_chain(retries: int, chain_s: int) -> None:
    settings = TaskSettings(task_soft_limit_s=4, task_hard_limit_s=7, task_max_retries=retries)

    assert settings.retry_chain_s == chain_s
    assert settings.step_deadline_s == max(7, chain_s)


def test_the_recipe_follows_from_the_output_format() -> None:
    assert RenderSettings(thumbnail_format=OutputFormat.AVIF).recipe.slug.endswith("-avif")


def test_what_the_environment_does_not_have_is_read_from_a_file_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "DARKROOM_BROKER_URL").write_text("amqp://file//")
    (tmp_path / "DARKROOM_RESULT_URL").write_text("redis://file/0\n")
    monkeypatch.setenv("DARKROOM_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("DARKROOM_BROKER_URL", "amqp://environment//")

    settings = BrokerSettings()

    assert settings.broker_url.get_secret_value() == "amqp://environment//"
    assert settings.result_url.get_secret_value() == "redis://file/0"


def test_no_file_is_read_unless_a_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "DARKROOM_MAX_PIXELS").write_text("12")
    monkeypatch.chdir(tmp_path)

    assert LimitSettings().max_pixels == 100_000_000
