"""Problem documents, the two families of errors, and how long a retry waits."""

import pickle

import pytest
from pydantic import ValidationError

from darkroom.celery_app import retry_delay_s
from darkroom.contracts.problems import PROBLEM_TYPE_PREFIX, Problem, problem
from darkroom.errors import BlobMissingError, PermanentError, TransientError
from darkroom.settings import TaskSettings
from darkroom.tries import killed_worker


def test_a_problem_is_named_by_its_slug() -> None:
    made = problem("image-too-large", "Too large", 413, "It has 12 bytes and the limit is 10.", value=12, limit=10)

    assert made.type == PROBLEM_TYPE_PREFIX + "image-too-large"
    assert made.slug == "image-too-large"
    assert Problem.from_wire(made.to_wire()) == made


@pytest.mark.parametrize("slug", ["", "Image-Too-Large", "image too large", "a/b", "image-too-large\n"])
def test_a_slug_that_is_no_stable_name_is_refused(slug: str) -> None:
    with pytest.raises(ValidationError):
        problem(slug, "Too large", 413, "It is too large.")


@pytest.mark.parametrize("status", [200, 399, 600])
def test_a_problem_has_an_error_status(status: int) -> None:
    with pytest.raises(ValidationError):
        problem("odd", "Odd", status, "It is odd.")


def test_a_permanent_error_keeps_its_problem_on_the_way_from_child_to_parent() -> None:
    error = killed_worker()

    arrived = pickle.loads(pickle.dumps(error))

    assert type(arrived) is PermanentError
    assert arrived.problem == error.problem
    assert str(arrived) == error.problem.detail


def test_a_missing_blob_is_tried_again_and_names_its_key() -> None:
    error = BlobMissingError("originals/ab/x")

    assert isinstance(error, TransientError)
    assert error.key in str(error)
    assert pickle.loads(pickle.dumps(error)).key == "originals/ab/x"


@pytest.mark.parametrize("jitter", [0.0, 0.2, 0.5, 0.51, 0.999, 1.0])
@pytest.mark.parametrize("retries", range(6))
def test_a_retry_waits_whole_seconds_that_double_and_at_most_one_more(retries: int, jitter: float) -> None:
    delay = retry_delay_s(retries, jitter)

    # A countdown between 0 and 1 cannot be published to a quorum queue.
    assert isinstance(delay, int)
    assert 2**retries <= delay <= 2**retries + 1


def test_the_retry_chain_is_never_longer_than_the_settings_say() -> None:
    for retries in range(6):
        settings = TaskSettings(task_max_retries=retries)
        assert sum(retry_delay_s(n, 1.0) for n in range(retries)) == settings.retry_chain_s
