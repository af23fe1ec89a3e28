"""How soon what was lost is sent again, and that nothing else is: by an injected clock, at the default limits."""

import pytest
from scheduler_house import QUEUES, House, Photo

TWO_MINUTES_S = 120


def with_photos(count: int, *, per_s: int = 500, first_tick_s: float = 0) -> House:
    house = House(per_s=per_s, first_tick_s=first_tick_s)
    house.run(100)  # fences have come back already
    house.photos = [Photo() for _ in range(count)]
    house.dispatch(house.photos)
    return house


@pytest.mark.parametrize("stopped", QUEUES)
def test_behind_a_worker_stopped_for_ten_minutes_none_of_20_000_is_sent_again(stopped: str) -> None:
    house = with_photos(20_000)
    house.stopped = {stopped}
    house.run(600)
    assert (len(house.unfinished), house.sent_again) == (20_000, 0)
    house.stopped = set()
    house.run(300)
    assert (len(house.unfinished), house.sent_again) == (0, 0)


@pytest.mark.parametrize("stopped", QUEUES)
def test_when_all_of_it_is_purged_and_flushed_as_well_all_finish(stopped: str) -> None:
    house = with_photos(20_000)
    house.stopped = {stopped}
    house.run(600)
    house.lose_everything()
    house.stopped = set()
    house.run(TWO_MINUTES_S)
    assert house.sent_again == 20_000
    house.run(200)
    assert (len(house.unfinished), house.sent_again) == (0, 20_000)


@pytest.mark.parametrize("first_tick_s", range(5))
@pytest.mark.parametrize("after_s", [0, 1, 3, 7, 12])
@pytest.mark.parametrize("stop_s", [0, 20, 600, 3600])
def test_a_loss_is_mended_within_two_minutes_whenever_it_happens(after_s: int, first_tick_s: int, stop_s: int) -> None:
    house = with_photos(30, per_s=3, first_tick_s=first_tick_s)
    house.run(after_s)
    house.stopped = set(QUEUES) if stop_s else set()
    house.run(stop_s)
    house.lose_everything()
    house.stopped = set()
    house.run(TWO_MINUTES_S - 10)  # and ten seconds of work
    house.run(10)
    assert house.unfinished == []


def test_in_the_worst_case_it_takes_a_minute_and_a_half() -> None:
    """Lost at every moment between two ticks, by any worker that stood for 0 to 40 s: the figure of decision 2."""
    worst_s = 0.0
    for first_tick_s in range(5):
        for stopped in ("", *QUEUES):
            for stop_s in range(0, 41, 2):
                house = with_photos(1, first_tick_s=first_tick_s)
                house.stopped = {stopped}
                house.run(stop_s)
                house.photos.append(Photo())
                house.dispatch(house.photos[-1:])
                house.lose_everything()
                house.stopped, lost_s = set(), house.now_s
                while house.unfinished:
                    house.run(1)
                worst_s = max(worst_s, house.now_s - lost_s)
    assert worst_s == 90
