"""Drawn fundus photographs: a disease, a pigment and a camera each change what they should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from simulations.photographs import CAMERAS, HEIGHT, WIDTH, Sitting, draw, write_photograph


def _sitting(
    person: int = 3, eye: str = "right", camera: int = 0, pigment: float = 0.4,
    severity: Mapping[str, float] | None = None, path: Path = Path("unused.jpg"),
) -> Sitting:  # fmt: skip
    return Sitting(path, 42, person, eye, camera, pigment, 57.0, 0.0, 90, severity or {})


def _bright(image: np.ndarray) -> int:
    """Pixels as bright as drusen or exudates."""
    return int(((image[..., 0] > 190) & (image[..., 1] > 150)).sum())


def test_a_photograph_is_a_function_of_its_sitting(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_photograph(_sitting(path=tmp_path / name))
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    image = cv2.imread(str(tmp_path / "a.jpg"))
    assert image is not None
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert not np.array_equal(draw(_sitting(3)), draw(_sitting(4)))


def test_both_eyes_are_mirrored_alike_but_not_equal() -> None:
    left, right = (
        cv2.GaussianBlur(draw(_sitting(eye=e)), (0, 0), 6).astype(float) for e in ("left", "right")
    )
    mirrored = left[:, ::-1]
    assert not np.array_equal(mirrored, right)
    assert np.abs(mirrored - right).mean() < np.abs(left - right).mean()
    assert right[:, WIDTH // 2 :].max() > right[:, : WIDTH // 2].max()  # a right eye's disc is on the right
    assert left[:, : WIDTH // 2].max() > left[:, WIDTH // 2 :].max()


@pytest.mark.parametrize("camera", range(len(CAMERAS)))
def test_the_border_is_dark_and_the_retina_is_not(camera: int) -> None:
    image = draw(_sitting(camera=camera))
    assert image[:, :20].max() < 8
    assert image[:, -20:].max() < 8
    middle = image[HEIGHT // 2 - 50 : HEIGHT // 2 + 50, WIDTH // 2 - 50 : WIDTH // 2 + 50]
    assert middle[..., 0].mean() > 60 > 8


def test_cameras_differ() -> None:
    means = [
        tuple(draw(_sitting(camera=c)).reshape(-1, 3).mean(axis=0).round(1)) for c in range(len(CAMERAS))
    ]
    assert len(set(means)) == len(CAMERAS)


def test_pigment_darkens_step_by_step() -> None:
    levels = [draw(_sitting(pigment=p)).mean() for p in (0.1, 0.35, 0.6, 0.9)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 1.5 * levels[-1]


@pytest.mark.parametrize("disease", ["macular_degeneration", "diabetic_eye_disease"])
def test_macular_degeneration_and_diabetes_add_bright_spots(disease: str) -> None:
    def bright(severity: float) -> float:
        return float(np.mean([_bright(draw(_sitting(p, severity={disease: severity}))) for p in range(6)]))

    assert bright(0.0) < bright(0.3) < bright(0.9)


def test_diabetes_adds_dark_blots_that_macular_degeneration_does_not() -> None:
    def dark(severity: Mapping[str, float]) -> int:
        image = draw(_sitting(pigment=0.1, severity=severity)).astype(int)
        return int(((image[..., 0] > 40) & (image[..., 0] < 105) & (image[..., 1] < 30)).sum())

    assert dark({"diabetic_eye_disease": 0.9}) > 3 * max(20, dark({"macular_degeneration": 0.7}))


def test_glaucoma_widens_the_cup() -> None:
    def cup(severity: float) -> int:
        image = draw(_sitting(severity={"glaucoma": severity}))
        return int((image[..., 1] > 185).sum())

    assert cup(0.0) < cup(0.4) < cup(0.9)


def test_cataract_takes_away_contrast() -> None:
    def sharpness(severity: float) -> float:
        return float(
            cv2.Laplacian(draw(_sitting(severity={"cataract": severity})), cv2.CV_64F)[150:330, 200:440].std()
        )

    assert sharpness(0.0) > 1.5 * sharpness(0.2) > 1.5 * sharpness(0.8)


def test_lesions_are_still_there_at_64_pixels() -> None:
    def small(severity: Mapping[str, float]) -> np.ndarray:
        square = draw(_sitting(severity=severity))[:, 80:560]
        return cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA).astype(float)

    for disease in ("macular_degeneration", "diabetic_eye_disease", "glaucoma", "cataract"):
        assert np.abs(small({disease: 0.8}) - small({})).max() > 25
