"""Fundus photographs of a site: the index, and every photograph located, cropped and resized."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

from pm1_core.data.arrays import RowWriter
from pm1_core.data.fundus import Box, crop_retina, decode, encode_png, locate_retina, resize
from pm1_core.data.manifest import FundusSource
from pm1_core.data.preparation_report import Findings
from pm1_core.data.subjects import subject_text
from pm1_core.data.tables import column_names, read_batches
from pm1_core.errors import DataError
from pm1_core.validate import refusal, require_choice

EYE_NAMES: dict[str, str] = {
    "left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right",
}  # fmt: skip
# A retina takes most of a photograph; a bright region of less than a tenth of its shorter side is dust or text.
_SMALLEST_SHARE = 0.1
_COLUMNS = ("subject", "eye", "file")


@dataclass(frozen=True)
class Photograph:
    """A row of the index. row: line of the file; path: the photograph, which may be absent."""

    row: int
    subject: str
    eye: str
    name: str
    path: Path

    def __str__(self) -> str:
        return f"row {self.row} ({self.name}, {self.subject} {self.eye})"


@dataclass
class _Outcome:
    """What came of the photographs of one eye, tried in order of the index."""

    rejected: list[tuple[str, Photograph]] = field(default_factory=list)
    used: Photograph | None = None
    box: Box | None = None
    digest: bytes = b""
    small: np.ndarray | None = None


def png_name(subject: str, eye: str) -> str:
    """File name of a prepared photograph; characters that a file name cannot hold are percent-encoded."""
    return f"{quote(subject, safe=' ')}_{eye}.png"


def read_index(source: FundusSource, findings: Findings) -> list[Photograph]:
    """The rows of the index in order.

    Raises DataError naming file and row for an unknown eye, an empty cell, or a file that is listed
    for two subjects or eyes.
    """
    path = source.index.path
    names = column_names(source.index)
    for column in _COLUMNS:
        if column not in names:
            raise DataError(
                refusal(f"{path}, row 1", f"found no column {column!r}", "write subject, eye, file")
            )
    photographs: list[Photograph] = []
    by_file: dict[str, Photograph] = {}
    for batch in read_batches(source.index):
        for row, subject, eye, name in zip(
            batch.rows.tolist(), *(batch.cells[c] for c in _COLUMNS), strict=True
        ):
            subject = subject_text(f"{path}, row {row}, column 'subject'", subject)
            eye = EYE_NAMES[
                require_choice(f"{path}, row {row}, column 'eye'", eye.strip().lower(), EYE_NAMES, DataError)
            ]
            name = name.strip()
            if not name:
                raise DataError(
                    refusal(f"{path}, row {row}, column 'file'", "found no file name", "write it")
                )
            photograph = Photograph(row, subject, eye, name, source.folder / name)
            first = by_file.setdefault(name, photograph)
            if first is photograph:
                photographs.append(photograph)
            elif (first.subject, first.eye) == (subject, eye):
                findings.add("fundus.duplicate-row", path, str(photograph))
            else:
                raise DataError(
                    refusal(
                        f"{path}, rows {first.row} and {row}",
                        f"found file {name!r} for {first.subject} {first.eye} and for {subject} {eye}",
                        "a photograph shows one eye of one person: correct the index",
                    )
                )
    if not photographs:
        raise DataError(refusal(path, "found no rows", "list at least one photograph"))
    return photographs


def _process(candidates: list[Photograph], folder: Path | None, size: int) -> _Outcome:
    outcome = _Outcome()
    for photograph in candidates:
        if outcome.used is not None:
            outcome.rejected.append(("fundus.extra", photograph))
            continue
        try:
            content = photograph.path.read_bytes()
        except OSError:
            absent = not photograph.path.exists()
            outcome.rejected.append(("fundus.file-absent" if absent else "fundus.unreadable", photograph))
            continue
        image = decode(content)
        if image is None:
            outcome.rejected.append(("fundus.unreadable", photograph))
            continue
        box = locate_retina(image)
        if box is None or max(box.width, box.height) < _SMALLEST_SHARE * min(image.shape[:2]):
            outcome.rejected.append(("fundus.black" if box is None else "fundus.no-retina", photograph))
            continue
        crop = crop_retina(image, box)
        outcome.used, outcome.box = photograph, box
        outcome.digest = hashlib.sha256(content).digest()
        outcome.small = resize(crop, size)
        if folder is not None:
            _write(folder / "png" / png_name(photograph.subject, photograph.eye), encode_png(crop))
    return outcome


def _write(path: Path, content: bytes) -> None:
    """Write and sync here, where waiting for the disk overlaps with the other threads' computing."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _in_order(groups: list[list[Photograph]], folder: Path | None, size: int) -> Generator[_Outcome]:
    """Outcomes in the order of `groups`, computed by threads (OpenCV releases the interpreter lock)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(32, 2 * cores)  # half of them wait for the disk
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one photograph a thread; nested threads only get into each other's way
    pending: deque[Future[_Outcome]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for group in groups:
            pending.append(pool.submit(_process, group, folder, size))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(threads_before)


def write_photographs(
    photographs: list[Photograph],
    source: FundusSource,
    folder: Path | None,
    size: int,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> dict[tuple[str, str], int]:
    """Prepare all photographs into `folder` (nothing is written if None); returns (subject, eye) -> row.

    Writes photographs.npy uint8 [m, size, size, 3], png/<subject>_<eye>.png (587 x 587) and index.tsv.
    Photographs that cannot be used are counted in `findings`. Raises DataError if none can be used.
    """
    path = source.index.path
    groups: dict[tuple[str, str], list[Photograph]] = {}
    for photograph in photographs:
        groups.setdefault((photograph.subject, photograph.eye), []).append(photograph)
    rows: dict[tuple[str, str], int] = {}
    contents: dict[bytes, Photograph] = {}
    lines = ["subject\teye\tfile\tbox"]
    with ExitStack() as stack:
        writer = None
        if folder is not None:
            (folder / "png").mkdir(parents=True)
            shape = (size, size, 3)
            writer = stack.enter_context(RowWriter(folder / "photographs.npy", shape, "uint8"))
        # Closed on an error too: its threads must end before the folder goes away.
        outcomes = stack.enter_context(closing(_in_order(list(groups.values()), folder, size)))
        for done, outcome in enumerate(outcomes, 1):
            progress(done, len(groups))
            for code, photograph in outcome.rejected:
                findings.add(code, path, str(photograph))
            used, box = outcome.used, outcome.box
            if used is None or box is None or outcome.small is None:
                continue
            first = contents.setdefault(outcome.digest, used)
            if first is not used:
                findings.add("fundus.same-content", path, f"{used} as {first}")
            rows[used.subject, used.eye] = len(rows)
            place = f"{box.left},{box.top},{box.width},{box.height}"
            lines.append(f"{used.subject}\t{used.eye}\t{used.name}\t{place}")
            if writer is not None:
                writer.append(outcome.small[None])
    if folder is not None:
        (folder / "index.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not rows:
        raise DataError(
            refusal(
                path,
                f"found no usable photograph among {len(photographs)} in {source.folder}",
                "check the folder",
            )
        )
    return rows
