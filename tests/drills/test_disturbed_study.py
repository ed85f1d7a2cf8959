"""Whatever is killed in whatever kind of phase, a study ends with the bytes of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from rehearsal import killed, parts, plan, small_study, undisturbed
from working import Working

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.mark.parametrize("number", [0, 6])
def test_a_process_is_killed_in_each_kind_of_phase(
    hospitals: dict[str, Path], tmp_path: Path, number: int
) -> None:
    """A dozen of the kills that `make drills` does."""
    study, definition = small_study(), hospitals["north"].parent.parent / "study.yaml"
    with Working(tmp_path / "working", hospitals, study, definition) as working:
        killed(working, plan(number))
        assert parts(working.checkpoints) == undisturbed(hospitals, study, tmp_path / "undisturbed")
