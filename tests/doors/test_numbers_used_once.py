"""No number is taken twice by the guard, whatever its clock does and however often it is started."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server import guard
from server.guard import WINDOW, Register

_STEPS = st.sampled_from([0.0, 1.0, WINDOW - 1, WINDOW, 2 * WINDOW, 3 * WINDOW, 86400.0, -WINDOW, -86400.0])


@example(steps=[(0.0, 1, False), (86400.0, 1, False), (-86400.0, 1, False)])
@given(steps=st.lists(st.tuples(_STEPS, st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
def test_no_number_is_taken_twice(steps: list[tuple[float, int, bool]]) -> None:
    """A clock goes on or is set; four recorded calls come again and again; the guard is started anew."""
    recorded = {which: 1e9 + offset for which, offset in enumerate((-WINDOW, 0.0, 1.0, WINDOW))}
    taken: list[int] = []
    now = 1e9
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "_now", lambda: now)
        register = Register(Path(folder) / "guard.db")
        for place, (step, which, anew) in enumerate(steps):
            now += step
            if anew:
                register = Register(Path(folder) / "guard.db")
            register.use(f"york {place}", now)  # others call meanwhile
            if abs(recorded[which] - now) <= WINDOW and register.use(f"leeds {which}", recorded[which]):
                taken.append(which)
    assert sorted(taken) == sorted(set(taken))


def test_a_new_number_is_taken_while_time_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr(guard, "_now", lambda: now)
    register = Register(tmp_path / "guard.db")
    for hour in range(48):
        now = 1e9 + 3600.0 * hour
        assert register.use(f"leeds {hour}", now - WINDOW)
        assert not register.use(f"leeds {hour}", now - WINDOW)
