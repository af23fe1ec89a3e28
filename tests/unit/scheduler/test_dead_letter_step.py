"""A reader of dead letters outlives what it cannot settle."""

from unittest.mock import Mock

from sqlalchemy.exc import OperationalError

from scheduler.dead_letters import DeadLetters, Fate, dead_letter_step


def test_a_letter_that_cannot_be_settled_now_is_kept_and_tried_again() -> None:
    letters, message, worker = Mock(spec=DeadLetters), Mock(headers={}), Mock()
    letters.settle.side_effect = [OperationalError("SELECT 1", {}, Exception("gone")), Fate.DROPPED]
    step = dead_letter_step(letters)(worker)
    step._timer = worker.timer
    step._take(message)
    assert not message.ack_log_error.called
    [((_, again, arguments), _)] = worker.timer.call_after.call_args_list
    again(*arguments)
    assert message.ack_log_error.call_count == 1


def test_a_letter_that_breaks_the_reader_does_not_break_the_worker() -> None:
    letters, message = Mock(spec=DeadLetters), Mock(headers={})
    letters.settle.side_effect = AttributeError("a bug")
    dead_letter_step(letters)(Mock())._take(message)
    assert message.ack_log_error.call_count == 1
