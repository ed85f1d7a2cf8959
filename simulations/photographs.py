"""Colour fundus photographs drawn from a person.

What is drawn: pigment (choroid and tessellation), optic disc and cup, arcades of arteries and veins grown by
a random walk, macula and fovea; drusen and atrophy (macular degeneration), haemorrhages, microaneurysms,
exudates (diabetic eye disease), cup-to-disc ratio and pallor (glaucoma), haze and blur (cataract); a camera's
field, colour, exposure and black border. Sizes are fractions of the retina's diameter, so that lesions are
still visible at 64 to 96 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from simulations.scenarios import sequence
from simulations.vessels import Vessels, grow_vessels

WIDTH, HEIGHT = 640, 480
_SHIFT = 4  # fractional bits of cv2's drawing coordinates
_DARK = np.array([92.0, 44.0, 26.0])  # sRGB of a strongly pigmented fundus
_LIGHT = np.array([226.0, 122.0, 74.0])  # and of a blond one


@dataclass(frozen=True)
class Camera:
    """A site's camera. diameter: of the retina in pixels; centre: offset in pixels; gain: sRGB multipliers;
    vignette: darkening at the rim; cut: pixels missing at top and bottom; notch: registration mark.
    """

    diameter: int
    centre: tuple[int, int]
    gain: tuple[float, float, float]
    vignette: float
    cut: int = 0
    notch: bool = False


CAMERAS: tuple[Camera, ...] = (
    Camera(446, (0, 0), (1.00, 1.00, 1.00), 0.34),
    Camera(430, (12, -4), (1.05, 0.94, 0.86), 0.42, notch=True),
    Camera(470, (-8, 2), (0.96, 1.03, 1.06), 0.30, cut=14),
    Camera(420, (0, 8), (1.03, 0.98, 0.94), 0.48),
    Camera(456, (16, 0), (0.97, 1.00, 1.05), 0.36, notch=True),
    Camera(438, (-14, 6), (1.06, 0.99, 1.00), 0.40, cut=10),
    Camera(462, (4, -6), (1.00, 0.96, 0.90), 0.46, cut=20, notch=True),
)


@dataclass(frozen=True)
class Sitting:
    """What one photograph is drawn from.

    path: file to write; seed, person: key of the random numbers; eye: left or right; camera: index;
    pigment: melanin 0 to 1; age: years; pressure: standardised blood pressure (narrow arteries);
    severity: disease -> 0 to 1 in this eye.
    """

    path: Path
    seed: int
    person: int
    eye: str
    camera: int
    pigment: float
    age: float
    pressure: float
    quality: int = 90
    severity: Mapping[str, float] = field(default_factory=dict)


@cache
def _field(index: int) -> np.ndarray:
    """Illumination uint8 [HEIGHT, WIDTH, 3] of a camera, 0 outside the retina."""
    camera = CAMERAS[index]
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    cx, cy = WIDTH / 2 + camera.centre[0], HEIGHT / 2 + camera.centre[1]
    radius = camera.diameter / 2
    distance = np.hypot(x - cx, y - cy) / radius
    inside = np.clip((1 - distance) * radius / 2.5, 0, 1)
    top = cy - radius + camera.cut
    inside = inside * (np.abs(y - cy) < cy - top)
    if camera.notch:
        inside = np.maximum(inside, np.hypot(x - cx - 0.72 * radius, y - cy + 0.72 * radius) < 7)
    # Light falls off towards the rim and a little from one side.
    light = (1 - camera.vignette * distance**2.4) * (1 + 0.06 * (x - cx) / radius)
    shaded = np.clip(light, 0, 1)[..., None] * inside[..., None] * np.array(camera.gain, dtype=np.float32)
    light_map: np.ndarray = np.clip(shaded * 215, 0, 255).astype(np.uint8)
    return light_map


def draw(sitting: Sitting) -> np.ndarray:
    """The photograph uint8 [480, 640, 3], sRGB. A function of `sitting` alone."""
    eye = ("left", "right").index(sitting.eye)
    rng = np.random.default_rng(sequence(sitting.seed, "photograph", sitting.person, eye))
    person = np.random.default_rng(sequence(sitting.seed, "retina", sitting.person))
    camera = CAMERAS[sitting.camera]
    unit = camera.diameter / 440.0
    centre = np.array([WIDTH / 2 + camera.centre[0], HEIGHT / 2 + camera.centre[1]])
    nasal = 1.0 if eye else -1.0  # the disc of a right eye is on the right
    # Anatomy: the person's, slightly different in each eye.
    anatomy = person.normal(size=8) * 0.9 + rng.normal(size=8) * 0.35
    gaze = rng.normal(0, 4, 2)
    # Drawn before any lesion: an illness must not change the light.
    light = np.array([rng.normal(1.0, 0.045), rng.random(), rng.integers(0, 4)])
    disc = centre + unit * np.array([nasal * (102 + 5 * anatomy[0]), -6 + 5 * anatomy[1]]) + gaze
    macula = centre + unit * np.array([-nasal * (14 + 4 * anatomy[0]), 12 + 4 * anatomy[2]]) + gaze
    canvas = _ground(sitting, person, rng)
    _macula(canvas, macula, unit, sitting.pigment)
    _atrophy_and_drusen(canvas, macula, unit, sitting.severity.get("macular_degeneration", 0.0), rng)
    vessels = grow_vessels(person, rng, disc, macula, nasal, unit)
    _vessels(canvas, vessels, unit, sitting)
    _diabetic_lesions(
        canvas, centre, macula, disc, unit, sitting.severity.get("diabetic_eye_disease", 0.0), rng
    )
    _disc(canvas, disc, unit, anatomy, sitting, vessels)
    return _expose(canvas, sitting, light)


def write_photograph(sitting: Sitting) -> None:
    """Draw and write one JPEG. Raises OSError if the folder does not take it."""
    image = cv2.cvtColor(draw(sitting), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, sitting.quality])
    sitting.path.write_bytes(encoded.tobytes())


def write_photographs(sittings: list[Sitting]) -> int:
    """`write_photograph` for each, on one core; returns how many."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for sitting in sittings:
            write_photograph(sitting)
    finally:
        cv2.setNumThreads(threads)
    return len(sittings)


def _colour(*rgb: float) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, max(0, part))) for part in rgb)
    return red, green, blue


def _ground(sitting: Sitting, person: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Pigmented background with mottling; light fundi show choroidal vessels (tessellation)."""
    tone = _LIGHT + (_DARK - _LIGHT) * sitting.pigment
    mottle = person.normal(0, 1, (9, 12)) + 0.4 * rng.normal(0, 1, (9, 12))
    fine = person.normal(0, 1, (30, 40))
    texture = 4.0 * mottle
    large = cv2.resize(texture.astype(np.float32), (160, 120), interpolation=cv2.INTER_CUBIC)
    stripes = cv2.resize(fine.astype(np.float32), (160, 120), interpolation=cv2.INTER_CUBIC)
    mottled = large + stripes * (2.0 + 7.0 * (1 - sitting.pigment))
    level = cv2.resize(np.clip(mottled + 128, 0, 255).astype(np.uint8), (WIDTH, HEIGHT))
    steps = (np.arange(256, dtype=np.float32) - 128)[:, None] * np.array([0.7, 0.9, 0.6], np.float32)
    table = np.clip(tone[None, :] * (1 + steps / 130), 0, 255).astype(np.uint8)
    ground: np.ndarray = cv2.LUT(cv2.merge([level, level, level]), table.reshape(256, 1, 3))
    return ground


def _region(canvas: np.ndarray, centre: np.ndarray, radius: float) -> tuple[np.ndarray, tuple[int, int]]:
    """View of the square around `centre`, and its upper left corner (x, y)."""
    x0, y0 = max(0, int(centre[0] - radius)), max(0, int(centre[1] - radius))
    x1, y1 = min(WIDTH, int(centre[0] + radius) + 1), min(HEIGHT, int(centre[1] + radius) + 1)
    return canvas[y0:y1, x0:x1], (x0, y0)


def _tint(
    canvas: np.ndarray,
    centre: np.ndarray,
    radius: float,
    factor: tuple[float, float, float],
    sharpness: float,
) -> None:
    """Multiply a round region by `factor` per channel, fading out towards `radius`."""
    region, (x0, y0) = _region(canvas, centre, radius)
    y, x = np.ogrid[0 : region.shape[0], 0 : region.shape[1]]
    d2 = ((x + x0 - centre[0]) ** 2 + (y + y0 - centre[1]) ** 2) / radius**2
    weight = np.exp(-sharpness * d2).astype(np.float32) * np.clip((1 - d2) * 4, 0, 1).astype(np.float32)
    change = 1 + weight[..., None] * (np.array(factor, np.float32) - 1)
    region[:] = np.clip(region * change, 0, 255).astype(np.uint8)


def _macula(canvas: np.ndarray, macula: np.ndarray, unit: float, pigment: float) -> None:
    """Darker, redder centre of the retina and the fovea in it."""
    _tint(canvas, macula, 74 * unit, (0.72, 0.62, 0.62), 3.0)
    _tint(canvas, macula, 16 * unit, (0.80, 0.72 + 0.1 * pigment, 0.8), 2.5)


def _dots(canvas: np.ndarray, places: np.ndarray, radii: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Filled circles with sub-pixel centres [n, 2] and radii [n]."""
    scale = 1 << _SHIFT
    for (x, y), radius in zip(np.round(places * scale).astype(int), radii, strict=True):
        cv2.circle(canvas, (int(x), int(y)), round(float(radius) * scale), colour, -1, cv2.LINE_AA, _SHIFT)


def _atrophy_and_drusen(
    canvas: np.ndarray, macula: np.ndarray, unit: float, severity: float, rng: np.random.Generator
) -> None:
    """Drusen around the fovea; with high severity a pale patch of geographic atrophy."""
    if severity <= 0:
        return
    if severity > 0.75:
        axes = (int(26 * unit * severity), int(21 * unit * severity))
        place = (int(macula[0] + rng.normal(0, 5)), int(macula[1] + rng.normal(0, 5)))
        cv2.ellipse(canvas, place, axes, float(rng.uniform(0, 180)), 0, 360, (214, 168, 118), -1, cv2.LINE_AA)
    count = 3 + int(46 * severity)
    reach = unit * (20 + 42 * severity)
    places = macula + rng.normal(0, 1, (count, 2)) * reach * 0.75
    radii = unit * rng.uniform(2.2, 4.2 + 4.0 * severity, count)
    half = count // 2
    _dots(canvas, places[:half], radii[:half], (232, 196, 120))
    _dots(canvas, places[half:], radii[half:], (244, 216, 146))


def _diabetic_lesions(
    canvas: np.ndarray,
    centre: np.ndarray,
    macula: np.ndarray,
    disc: np.ndarray,
    unit: float,
    severity: float,
    rng: np.random.Generator,
) -> None:
    """Microaneurysms, blot haemorrhages, hard exudates in clusters, cotton-wool spots."""
    if severity <= 0:
        return
    small, blots, clusters = int(6 + 24 * severity), int(1 + 20 * severity), int(5 * severity)

    def scattered(count: int) -> np.ndarray:
        angle, far = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0.02, 0.75, count)) * 205 * unit
        return centre + np.stack([np.cos(angle) * far, np.sin(angle) * far], axis=1)

    _dots(canvas, scattered(small), unit * rng.uniform(1.2, 2.6, small), (104, 22, 18))
    _dots(canvas, scattered(blots), unit * rng.uniform(3.0, 5.0 + 4.5 * severity, blots), (92, 14, 14))
    for place in scattered(max(0, blots // 3)):
        axes = (int(unit * rng.uniform(5, 11)) + 1, int(unit * rng.uniform(3, 5)) + 1)
        where = (int(place[0]), int(place[1]))
        cv2.ellipse(canvas, where, axes, float(rng.uniform(0, 180)), 0, 360, (98, 16, 14), -1, cv2.LINE_AA)
    for _ in range(clusters):
        angle = rng.uniform(0, 2 * np.pi)
        heart = macula + unit * rng.uniform(28, 78) * np.array([np.cos(angle), np.sin(angle)])
        count = int(rng.integers(5, 13))
        places = heart + rng.normal(0, 9 * unit, (count, 2))
        _dots(canvas, places, unit * rng.uniform(1.6, 4.6, count), (252, 234, 138))
    if severity > 0.6:
        places = disc + rng.normal(0, 70 * unit, (3, 2))
        _dots(canvas, places, unit * rng.uniform(5, 8, 3), (226, 206, 176))


def _vessels(canvas: np.ndarray, vessels: Vessels, unit: float, sitting: Sitting) -> None:
    """Veins darker and wider, arteries lighter; high blood pressure and age narrow the arteries."""
    tone = _LIGHT + (_DARK - _LIGHT) * sitting.pigment
    vein = _colour(tone[0] * 0.56, tone[1] * 0.30, tone[2] * 0.34)
    artery = _colour(tone[0] * 0.76, tone[1] * 0.42, tone[2] * 0.42)
    narrow = float(np.clip(1 - 0.10 * sitting.pressure - 0.004 * (sitting.age - 56), 0.6, 1.25))
    for group in vessels.groups:
        width = group.width * unit * (1.0 if group.vein else 0.78 * narrow)
        cv2.polylines(
            canvas, list(group.lines), False, vein if group.vein else artery, max(1, round(width)),
            cv2.LINE_AA, _SHIFT,
        )  # fmt: skip


def _disc(
    canvas: np.ndarray,
    disc: np.ndarray,
    unit: float,
    anatomy: np.ndarray,
    sitting: Sitting,
    vessels: Vessels,
) -> None:
    """Optic disc with its cup; glaucoma widens the cup, thins the rim and pales it."""
    glaucoma = sitting.severity.get("glaucoma", 0.0)
    radius = unit * (33 + 2.0 * anatomy[3])
    ratio = float(np.clip(0.30 + 0.06 * anatomy[4] + 0.52 * glaucoma, 0.12, 0.88))
    region, (x0, y0) = _region(canvas, disc, radius * 1.5)
    layer = region.copy()
    scale = 1 << _SHIFT
    where = (round((disc[0] - x0) * scale), round((disc[1] - y0) * scale))

    def oval(share: float, colour: tuple[int, int, int]) -> None:
        axes = (round(radius * 0.92 * share * scale), round(radius * 1.06 * share * scale))
        cv2.ellipse(layer, where, axes, 0, 0, 360, colour, -1, cv2.LINE_AA, _SHIFT)

    pale = 26 * glaucoma
    oval(1.0, _colour(236 + pale * 0.3, 164 + pale, 100 + pale))
    oval(ratio, _colour(255, 236, 186))
    layer = cv2.GaussianBlur(layer, (0, 0), max(0.8, 1.5 * unit))
    cv2.addWeighted(layer, 0.92, region, 0.08, 0, dst=region)
    corner = np.array([x0, y0]) * scale
    for group in vessels.at_disc:
        colour = _colour(150, 40, 34) if group.vein else _colour(190, 70, 52)
        lines = [line - corner.astype(np.int32) for line in group.lines]
        cv2.polylines(
            region, lines, False, colour, max(1, round(group.width * unit * 0.8)), cv2.LINE_AA, _SHIFT
        )


def _expose(canvas: np.ndarray, sitting: Sitting, drawn: np.ndarray) -> np.ndarray:
    """Optics and camera: blur, haze of the lens, illumination, black border.

    drawn: float [3]: exposure, tint of the haze, sRGB level of the border.
    """
    light = _field(sitting.camera)
    cataract = sitting.severity.get("cataract", 0.0)
    lens = 0.05 + 0.002 * max(0.0, sitting.age - 50)  # every lens yellows with age
    canvas = cv2.GaussianBlur(canvas, (5, 5), 0.9)
    if cataract > 0.02:
        size = 2 * round(2 + 9 * cataract) + 1
        canvas = cv2.blur(cv2.blur(canvas, (size, size)), (size, size))
    haze = min(0.72, lens + 0.58 * cataract)
    veil = np.array([176, 138, 96]) * (0.9 + 0.1 * drawn[1])
    exposure = float(np.clip(drawn[0], 0.85, 1.15)) * (1 - 0.10 * cataract)
    steps = np.arange(256, dtype=np.float32)[:, None]
    table = np.clip(((1 - haze) * steps + haze * veil.astype(np.float32)) * exposure, 0, 255)
    canvas = cv2.LUT(canvas, table.astype(np.uint8).reshape(256, 1, 3))
    image: np.ndarray = cv2.multiply(canvas, light, scale=1 / 215)
    # The border of a real camera is nearly black, never exactly.
    np.maximum(image, np.uint8(drawn[2]), out=image)
    return image
