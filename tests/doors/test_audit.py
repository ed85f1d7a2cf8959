"""audit.jsonl: whoever removes, changes, moves or cuts off a line is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.audit import LEFT, NAME, STOPPED, Audit, today
from client.cli import main
from pm1_core.errors import StateError


def _written(folder: Path) -> Audit:
    audit = Audit(folder / NAME)
    for number in range(4):
        audit.write(LEFT, {"study": "retina", "phase": "fusion", "round": number, "bytes": 100})
    audit.write(STOPPED, {"what": "train", "reason": "it has no ticket"})
    return audit


def _changed(lines: list[str]) -> list[str]:
    lines[1] = lines[1].replace('"bytes":100', '"bytes":1')
    return lines


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_changed, "line 3 does not follow from line 2"),
        (lambda lines: [*lines[:1], *lines[2:]], "line 2 is missing"),
        (
            lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
            "line 2 is missing, line 3 is in its place",
        ),
        (lambda lines: lines[:-1], "the last ones were removed"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "inserted or moved"),
        (lambda lines: [*lines[:-1], lines[-1].replace("ticket", "reason")], "not the one its head knows"),
        (lambda lines: [], "the last ones were removed"),
    ],
)
def test_a_line_that_is_tampered_with_is_found(
    tmp_path: Path, tamper: Callable[[list[str]], list[str]], said: str
) -> None:
    """By verify, by show, and by the next line that is written."""
    audit = _written(tmp_path)
    assert audit.verify().lines == 5
    lines = audit.path.read_text().splitlines()
    audit.path.write_text("".join(line + "\n" for line in tamper(lines)))
    for use in (audit.verify, Audit(audit.path).lines, lambda: Audit(audit.path).write(LEFT, {})):
        with pytest.raises(StateError, match=said):
            use()


def test_a_log_that_was_put_back_is_found_by_a_hash_that_was_written_down(tmp_path: Path) -> None:
    """Both files at once, as from a backup."""
    audit = _written(tmp_path)
    before = {file: file.read_bytes() for file in (tmp_path / NAME).parent.iterdir()}
    audit.write(LEFT, {"bytes": 1})
    digest = audit.verify().digest
    for file, content in before.items():
        file.write_bytes(content)
    assert audit.verify().lines == 5
    with pytest.raises(StateError, match="put back to an earlier state"):
        audit.verify(digest)


def test_bytes_of_today_are_those_that_left_whoever_wrote_them(tmp_path: Path) -> None:
    """Two processes write to one log."""
    audit, other = _written(tmp_path), Audit(tmp_path / NAME)
    other.write(LEFT, {"bytes": 11})
    assert audit.bytes_on(today()) == other.bytes_on(today()) == 411
    assert audit.bytes_on("2020-01-01") == 0


def test_the_command_ends_with_a_sentence_and_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And shows lines to people and scripts while nothing is wrong."""
    audit = _written(tmp_path)
    command = ["audit", "show", "--folder", str(tmp_path)]
    assert main(command) == 0
    assert "left       retina  fusion  round 1" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5
    assert main(["audit", "verify", "--folder", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == 5
    audit.path.write_text("".join(audit.path.read_text().splitlines(keepends=True)[:-1]))
    assert main(["audit", "verify", "--folder", str(tmp_path)]) == 3
    assert "the last ones were removed" in capsys.readouterr().err
