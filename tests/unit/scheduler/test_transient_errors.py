"""Which of the database's errors are worth another try."""

import pytest
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError

from darkroom.celery_app import Delivery
from darkroom.contracts.messages import Nothing
from darkroom.errors import TransientError
from scheduler.tasks import with_database

DELIVERY = Delivery(task_id="1", previous=None)


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_a_database_that_does_not_answer_is_asked_again(kind: type[OperationalError] | type[InterfaceError]) -> None:
    def body(message: Nothing, delivery: Delivery) -> Nothing:
        raise kind("SELECT 1", {}, Exception("gone"))

    with pytest.raises(TransientError, match="gone"):
        with_database(body)(Nothing(), DELIVERY)


def test_a_statement_that_breaks_a_rule_is_an_error_of_ours() -> None:
    def body(message: Nothing, delivery: Delivery) -> Nothing:
        raise IntegrityError("INSERT", {}, Exception("twice"))

    with pytest.raises(IntegrityError):
        with_database(body)(Nothing(), DELIVERY)
