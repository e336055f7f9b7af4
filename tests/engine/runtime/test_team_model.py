"""The workers' protocol holds in every order of its steps, and the checker finds what would break it.

`python tests/helpers/team_model.py` prints the states.
"""

from __future__ import annotations

import pytest
from helpers.team_model import INVARIANTS, BrokenError, Team, explore

SIZES = {
    "two jobs of two phases": (Team(2, jobs=2, phases=2), 19_529),
    "two callers": (Team(2, callers=2), 69_655),
    "a fork before either job": (Team(2, jobs=2, forks=True), 17_638),
    "phases of two shares each and of one": (Team(2, jobs=2, phases=2, shares=(2, 1)), 32_078),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_invariant_holds_in_every_state(name: str) -> None:
    team, states = SIZES[name]
    found = explore(team)
    assert found.states == states  # fewer would be a part of the protocol that is not modelled any more
    assert found.ends


@pytest.mark.long
def test_every_invariant_holds_for_three_workers() -> None:
    found = explore(Team(3))
    assert found.ends


@pytest.mark.parametrize(
    ("without", "team", "invariant"),
    [
        ("taking turns", {"callers": 2}, "alone"),
        ("waking workers", {"jobs": 2}, "woken"),
        ("looking again", {"jobs": 2}, "woken"),
        ("waking who waits", {"jobs": 2}, "woken"),
        ("counting who waits first", {"jobs": 2}, "woken"),
        ("waiting for who is inside", {"jobs": 2}, "in time"),
        ("taking at once", {"jobs": 2}, "once"),
        ("counting at once", {"shares": (2,)}, "woken"),
        ("one direction", {"shares": (2,)}, "once"),
        ("waiting for shares", {"phases": 2}, "once"),
    ],
)
def test_what_is_left_out_is_missed(without: str, team: dict[str, int], invariant: str) -> None:
    with pytest.raises(BrokenError) as broken:
        explore(Team(2, **team, without=without))
    assert broken.value.name == invariant
    assert INVARIANTS[invariant] in str(broken.value)
