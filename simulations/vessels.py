"""Retinal vessels grown by a random walk: arcades from the disc, branches, twigs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FIXED = 16  # cv2 draws with 4 fractional bits


@dataclass(frozen=True)
class VesselGroup:
    """Vessels of one kind and width. lines: int32 [points, 2] each, in 1/16 pixels; width in pixels at unit 1."""

    lines: tuple[np.ndarray, ...]
    width: float
    vein: bool


@dataclass(frozen=True)
class Vessels:
    """groups: thin before thick, arteries over veins; at_disc: the stumps that cross the optic disc."""

    groups: tuple[VesselGroup, ...]
    at_disc: tuple[VesselGroup, ...]


def grow_vessels(
    person: np.random.Generator,
    eye: np.random.Generator,
    disc: np.ndarray,
    macula: np.ndarray,
    nasal: float,
    unit: float,
) -> Vessels:
    """Grow a tree of 8 trunks, 40 branches and 80 twigs.

    person, eye: noise that both eyes share, and this eye's own; disc, macula: float [2] pixels;
    nasal: +1 if the nose is to the right; unit: pixels per 1/440 of the retina's diameter.
    Trunks start towards the upper and lower arcade; the temporal ones bend around the macula.
    """

    def noise(*shape: int) -> np.ndarray:
        return 0.9 * person.normal(size=shape) + 0.45 * eye.normal(size=shape)

    # Angles are counted from the temporal direction; the y axis of an image points down.
    start = np.radians(np.array([62, 78, -62, -78, 122, 138, -122, -138], dtype=float)) + 0.07 * noise(8)
    temporal = np.abs(start) < np.pi / 2
    steps = 44
    bend = np.where(temporal, -0.030, 0.006)[:, None] * np.sign(start)[:, None]
    profile = np.linspace(0.55, 1.35, steps)[None, :]
    wander = np.cumsum(noise(8, steps), axis=1) * 0.030
    angle = start[:, None] + np.cumsum(bend * profile, axis=1) + wander
    length = np.where(temporal, 6.6, 4.9)[:, None] * unit
    trunks = _walk(np.broadcast_to(disc, (8, 2)), angle, length, nasal)
    vein = np.arange(8) % 2 == 1

    # Branches leave both sides of a trunk at about 40 degrees, five each.
    parent = np.repeat(np.arange(8), 5)
    at = np.clip(
        np.tile(np.array([6, 12, 18, 25, 32]), 8) + np.rint(1.5 * noise(40)).astype(int), 3, steps - 4
    )
    side = np.where(np.tile(np.arange(5), 8) % 2 == 0, 1.0, -1.0)
    first = angle[parent, at] + side * (0.62 + 0.15 * noise(40))
    branch_angle = first[:, None] + np.cumsum(noise(40, 22), axis=1) * 0.055
    branches = _walk(trunks[parent, at], branch_angle, np.full((40, 1), 4.2 * unit), nasal)

    twig_of = np.repeat(np.arange(40), 2)
    twig_at = np.tile(np.array([7, 14]), 40)
    away = np.tile(np.array([1.0, -1.0]), 40) * (0.6 + 0.2 * noise(80))
    twig_angle = branch_angle[twig_of, twig_at][:, None] + away[:, None] + np.cumsum(noise(80, 12), 1) * 0.08
    twigs = _walk(branches[twig_of, twig_at], twig_angle, np.full((80, 1), 3.6 * unit), nasal)
    # The fovea has no vessels: what wanders into it ends there.
    branches, twigs = _spare(branches, macula, 22 * unit), _spare(twigs, macula, 26 * unit)

    groups: list[VesselGroup] = []
    kinds = (True, False)
    for is_vein in kinds:
        groups.append(_group(twigs, vein[parent[twig_of]] == is_vein, slice(None), 1.3, is_vein))
    for is_vein in kinds:
        groups.append(_group(branches, vein[parent] == is_vein, slice(None), 2.2, is_vein))
    for is_vein in kinds:
        chosen = vein == is_vein
        groups.append(_group(trunks, chosen, slice(26, None), 2.8, is_vein))
        groups.append(_group(trunks, chosen, slice(12, 28), 4.4, is_vein))
        groups.append(_group(trunks, chosen, slice(0, 14), 6.2, is_vein))
    stumps = tuple(_group(trunks, vein == is_vein, slice(0, 8), 5.2, is_vein) for is_vein in kinds)
    return Vessels(tuple(groups), stumps)


def _walk(origin: np.ndarray, angle: np.ndarray, step: np.ndarray, nasal: float) -> np.ndarray:
    """Points float [n, k + 1, 2] of walks from `origin` [n, 2] along `angle` [n, k] with `step` [n, 1]."""
    moves = np.stack([-nasal * np.cos(angle) * step, -np.sin(angle) * step], axis=-1)
    return np.concatenate([origin[:, None], origin[:, None] + np.cumsum(moves, axis=1)], axis=1)


def _spare(lines: np.ndarray, macula: np.ndarray, radius: float) -> np.ndarray:
    """Lines whose points within `radius` of the macula, and those after, repeat the last point before."""
    near = np.cumsum(np.hypot(*(lines - macula).transpose(2, 0, 1)) < radius, axis=1) > 0
    last = np.maximum(np.argmax(near, axis=1) - 1, 0)
    index = np.where(near, last[:, None], np.arange(lines.shape[1])[None, :])
    return np.take_along_axis(lines, index[..., None], axis=1)


def _group(lines: np.ndarray, chosen: np.ndarray, part: slice, width: float, vein: bool) -> VesselGroup:
    fixed = np.rint(lines[chosen][:, part] * _FIXED).astype(np.int32)
    return VesselGroup(tuple(fixed), width, vein)
