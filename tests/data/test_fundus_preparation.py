"""Photographs are located, centred and counted as in appendix E.4."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from site_files import disc, jpeg, write_site, write_study

from pm1_core.data.fundus import SIDE, crop_retina, decode, encode_png, locate_retina, resize
from pm1_core.data.manifest import load_manifest
from pm1_core.data.photographs import png_name
from pm1_core.data.preparation import check, prepare
from pm1_core.data.store import Store
from pm1_core.errors import DataError, PM1Error


def clinic(folder: Path, rows: list[tuple[str, str, bytes | None]]) -> Path:
    """A site whose i-th row is subject, eye and the content of photo i (None: no file)."""
    write_study(folder)
    (folder / "photos").mkdir(exist_ok=True)
    lines = ["subject,eye,file"]
    for i, (subject, eye, content) in enumerate(rows):
        lines.append(f"{subject},{eye},{i}.jpg")
        if content is not None:
            (folder / "photos" / f"{i}.jpg").write_bytes(content)
    (folder / "fundus.csv").write_text("\n".join(lines) + "\n")
    return write_site(folder, "clinic", fundus={"index": "fundus.csv", "folder": "photos"})


@pytest.mark.parametrize(
    ("height", "width", "centre", "radius"),
    [
        (400, 600, (300, 200), 150),
        (400, 600, (180, 220), 120),
        (300, 300, (150, 150), 90),
        (900, 1400, (700, 420), 380),
    ],
)
def test_the_retina_is_found_and_centred_with_five_pixels_beside_it(
    height: int, width: int, centre: tuple[int, int], radius: int
) -> None:
    image = disc(height, width, centre, radius)
    box = locate_retina(image)
    assert box is not None
    assert abs(box.left - (centre[0] - radius)) <= 3
    assert abs(box.top - (centre[1] - radius)) <= 3
    assert abs(box.width - 2 * radius) <= 6
    crop = crop_retina(image)
    assert crop.shape == (SIDE, SIDE, 3)
    again = locate_retina(crop)
    assert again is not None
    assert abs(again.left + again.width / 2 - SIDE / 2) <= 4
    assert abs(again.top + again.height / 2 - SIDE / 2) <= 4
    assert again.width == pytest.approx(SIDE * box.width / (max(box.width, box.height) + 10), abs=5)


def test_a_retina_cut_by_the_edge_stays_round_and_central() -> None:
    image = disc(400, 700, (350, 200), 260)  # higher than the image
    box = locate_retina(image)
    assert box is not None
    assert (box.top, box.height) == (0, 400)
    crop = crop_retina(image)
    mask = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) > 20
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(400 / 520, abs=0.02)
    assert abs(rows.mean() - SIDE / 2) <= 4
    assert abs(columns.mean() - SIDE / 2) <= 4


def test_the_largest_of_several_bright_regions_is_the_retina() -> None:
    image = disc(400, 600, (360, 200), 120)
    cv2.rectangle(image, (5, 5), (90, 30), (255, 255, 255), -1)
    box = locate_retina(image)
    assert box is not None
    assert box.left > 200


def test_colours_are_not_touched() -> None:
    image = np.full((597, 597, 3), 0, np.uint8)
    cv2.circle(image, (298, 298), 288, (200, 90, 30), -1)
    assert crop_retina(image)[SIDE // 2, SIDE // 2].tolist() == [200, 90, 30]
    decoded = decode(encode_png(image))
    np.testing.assert_array_equal(decoded, image)


def test_a_black_photograph_has_no_retina() -> None:
    assert locate_retina(np.zeros((50, 60, 3), np.uint8)) is None
    with pytest.raises(DataError, match="no region brighter than 20"):
        crop_retina(np.zeros((50, 60, 3), np.uint8))


def test_a_file_that_breaks_off_is_not_decoded() -> None:
    whole = jpeg(disc(200, 200, (100, 100), 80))
    assert decode(whole) is not None
    for content in (
        whole[: len(whole) // 2],
        whole[:-2],
        b"",
        b"not an image",
        encode_png(disc(64, 64, (32, 32), 20))[:-30],
    ):
        assert decode(content) is None


def test_every_photograph_is_used_or_counted_with_its_row(tmp_path: Path) -> None:
    good = [jpeg(disc(200, 300, (150 + i, 100), 80, seed=i)) for i in range(4)]
    dust = np.zeros((400, 400, 3), np.uint8)
    dust[10:20, 10:20] = 255
    rows: list[tuple[str, str, bytes | None]] = [
        ("a", "left", good[0]),
        ("a", "OD", good[1]),
        ("b", "L", jpeg(np.zeros((100, 100, 3), np.uint8))),
        ("b", "R", good[2][:900]),
        ("c", "OS", None),
        ("c", "OS", good[3]),  # the first usable of two
        ("c", "left", good[2]),
        ("d/e", "R", good[0]),  # the same bytes as row 2
        ("f", "r", jpeg(dust)),
    ]
    manifest = load_manifest(clinic(tmp_path, rows))
    report = prepare(manifest, tmp_path / "store")
    assert report == check(manifest)
    found = {finding.code: finding.rows for finding in report.findings}
    assert found == {
        "fundus.black": ("row 4 (2.jpg, b left)",),
        "fundus.unreadable": ("row 5 (3.jpg, b right)",),
        "fundus.file-absent": ("row 6 (4.jpg, c left)",),
        "fundus.extra": ("row 8 (6.jpg, c left)",),
        "fundus.same-content": ("row 9 (7.jpg, d/e right) as row 2 (0.jpg, a left)",),
        "fundus.no-retina": ("row 10 (8.jpg, f right)",),
    }
    store = Store.open(tmp_path / "store")
    assert store.subjects["subject"].tolist() == ["a", "c", "d/e"]
    left, has_left = store.photographs(np.array([1, 0, 2]), "left")
    right, has_right = store.photographs(store.people(None), "right")
    assert has_left.tolist() == [True, True, False]
    assert has_right.tolist() == [True, False, True]
    assert left.shape == (3, 224, 224, 3)
    assert (left[2] == 0).all()
    truth = decode(good[3])
    assert truth is not None
    np.testing.assert_array_equal(left[0], resize(crop_retina(truth), 224))
    png = cv2.imread(str(tmp_path / "store" / "fundus" / "png" / png_name("d/e", "right")))
    assert png.shape == (SIDE, SIDE, 3)
    assert len(list((tmp_path / "store" / "fundus" / "png").iterdir())) == 4
    assert right[2].any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "subject,eye,file\na,left,0.jpg\na,middle,1.jpg\n",
            "fundus.csv, row 3, column 'eye': found 'middle'",
        ),
        (
            "subject,eye,file\na,left,0.jpg\nb,left,0.jpg\n",
            "fundus.csv, rows 2 and 3: found file '0.jpg' for a left and",
        ),
        ("subject,side,file\na,left,0.jpg\n", "fundus.csv, row 1: found no column 'eye'"),
        (
            "subject,eye,file\n,left,0.jpg\n",
            "fundus.csv, row 2, column 'subject': found no subject identifier",
        ),
        ("subject,eye,file\na,left,\n", "fundus.csv, row 2, column 'file': found no file name"),
        ("subject,eye,file\na,left,nowhere.jpg\n", "fundus.csv: found no usable photograph among 1"),
        ("subject,eye,file\n", "fundus.csv: found no rows"),
    ],
)
def test_a_wrong_index_is_refused_with_its_row(tmp_path: Path, text: str, sentence: str) -> None:
    path = clinic(tmp_path, [("a", "left", jpeg(disc(100, 100, (50, 50), 40)))])
    (tmp_path / "fundus.csv").write_text(text)
    with pytest.raises(PM1Error) as caught:
        prepare(load_manifest(path), tmp_path / "store")
    assert sentence in str(caught.value)
    assert not (tmp_path / "store").exists()
