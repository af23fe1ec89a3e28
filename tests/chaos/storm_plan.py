"""When what is done to a Darkroom in a storm: pure, and the same for the same seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Strike:
    """One fault: its kind, how long what is stopped stays so, and a seed for its own choices."""

    number: int
    kind: str
    hold_s: float
    seed: int


def plan(seed: int, kinds: Sequence[str], count: int, longest_hold_s: float) -> list[Strike]:
    """`count` strikes in rounds of all kinds, each round in an order of its own, no kind twice in a row.

    Raises `ValueError` when a kind would have no turn.
    """
    if count < len(kinds):
        raise ValueError(f"{count} strikes are fewer than the {len(kinds)} kinds of fault")
    choose = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        turn = choose.sample(list(kinds), len(kinds))
        if order and turn[0] == order[-1]:
            turn.append(turn.pop(0))
        order += turn
    return [
        Strike(number, kind, round(choose.uniform(1, longest_hold_s), 1), choose.getrandbits(32))
        for number, kind in enumerate(order[:count], 1)
    ]


def share(left: int, strikes_left: int) -> int:
    """How many of the uploads that are left are let in for the next strike: an even part, and one more part is kept.

    What is kept is for strikes that need more. Never below two: one before the strike and one in the middle of it.
    """
    return max(2, left // (strikes_left + 1))
