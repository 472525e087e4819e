"""Shapes of the phantom as signed distances in mm, and their painting on a grid.

The frame is RAS: x to the patient's right, y forwards, z upwards. The origin is in the middle of the torso, at the
height of the first lumbar vertebra. An anatomy is a list of `Part`s, painted in order. Sizes, positions and habitus
differ between cases. Letters: n points, k segments of a tube.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.interpolate import make_interp_spline

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z in mm, each (n,) float32
Distance = Callable[[Points], np.ndarray]  # signed distance in mm, negative inside
Number = int | float | np.integer | np.floating
Vector = Sequence | np.ndarray  # three lengths in mm
Layers = tuple[tuple[str, Number], ...]  # tissues from outside inwards, each with its depth in mm
LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY = 1, 2, 3, 4
FAR = 1e3
REACH = 12.0


@dataclass(frozen=True)
class Part:
    """A shape of one tissue, or of several in layers, in the box from `low` to `high`.

    `gap` is the minimum distance in mm to earlier solid parts, wall and diaphragm; without it the part is painted over
    them. `inside` clips the part to the last solid part, shrunk by that many mm. Later parts with a gap avoid solid
    parts. `label` is written where the distance is negative; None does not change the labels.
    """

    layers: Layers
    distance: Distance
    low: Vector = (-FAR, -FAR, -FAR)
    high: Vector = (FAR, FAR, FAR)
    gap: Number | None = None
    inside: Number | None = None
    solid: bool = True
    label: int | None = None


@dataclass(frozen=True)
class Frame:
    """Position of a patient in the field of view, and body size."""

    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # mm
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def of_patient(self, points: Points) -> Points:
        """Converts points of the field of view to the frame of the organs."""
        x, y, z = ((c - d) / s for c, d, s in zip(points, self.shift, self.scale, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Anatomy:
    """One patient: parts in the order of painting, the space for organs, and waves that make shapes irregular."""

    parts: tuple[Part, ...]
    room: Distance
    waves: np.ndarray  # (k, 7): wave vector in rad/mm, amplitudes in mm, phase
    frame: Frame

    def irregular(self, points: Points) -> Points:
        """Patient coordinates, moved by long waves of a few mm so that no organ is a perfect ellipsoid."""
        points = self.frame.of_patient(points)
        return tuple(c + d for c, d in zip(points, sum_of_waves(points, self.waves), strict=True))


def sum_of_waves(points: Points, waves: np.ndarray) -> list[np.ndarray]:
    """The three components of a sum of plane waves; a row of `waves` is wave vector, amplitudes, phase."""
    x, y, z = points
    total = [np.zeros_like(x) for _ in range(3)]
    for kx, ky, kz, *amplitudes, phase in waves.astype(x.dtype):
        wave = np.sin(kx * x + ky * y + kz * z + phase)
        for component, amplitude in zip(total, amplitudes, strict=True):
            component += amplitude * wave
    return total


def draw_waves(rng: Generator, count: int, *, shortest: Number, longest: Number, amplitude: Number) -> np.ndarray:
    """Draws plane waves with wavelengths in mm; `amplitude` is the standard deviation of their sum in mm."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * 2 * np.pi / rng.uniform(shortest, longest, (count, 1))
    amplitudes = rng.normal(0, amplitude * np.sqrt(2 / count), (count, 3))
    return np.concatenate([vectors, amplitudes, rng.uniform(0, 2 * np.pi, (count, 1))], axis=1)


def paint(anatomy: Anatomy, points: Points, values: dict, *, blur: Number) -> tuple[np.ndarray, np.ndarray]:
    """Paints intensities (n,) float32 and labels (n,) uint8 at `points`; edges are `blur` mm wide, like a voxel."""
    points = anatomy.irregular(points)
    image = np.full(points[0].shape, values["air"], np.float32)
    labels = np.zeros(image.shape, np.uint8)
    free = -anatomy.room(points)  # distance to the nearest obstacle
    parent = np.full_like(image, FAR)
    extent = [(c.min(), c.max()) for c in points]
    for part in anatomy.parts:
        if part.solid:
            parent.fill(FAR)
        here = indices_in_box(points, extent, np.subtract(part.low, blur), np.add(part.high, blur))
        if len(here) == 0:
            continue
        distance = part.distance(tuple(c[here] for c in points))
        if part.gap is not None:
            distance = smooth_max(distance, part.gap - free[here], 6.0)
        if part.inside is not None:
            distance = np.maximum(distance, parent[here] + part.inside)
        if part.solid:
            free[here] = np.minimum(free[here], distance)
            parent[here] = distance
        near = distance < 0.5 * blur
        here, distance = here[near], distance[near]
        value = image[here]
        for tissue, depth in part.layers:
            value += np.clip(0.5 - (distance + depth) / blur, 0, 1) * (values[tissue] - value)
        image[here] = value
        if part.label is not None:
            labels[here[distance < 0]] = part.label
    return image, labels


def indices_in_box(points: Points, extent: list, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Indices of the points in a box; `extent` is the minimum and maximum of each coordinate, to skip tests."""
    here = None
    for c, (least, greatest), lo, hi in zip(points, extent, low, high, strict=True):
        if greatest < lo or least > hi:
            return np.empty(0, np.intp)
        if least >= lo and greatest <= hi:
            continue
        c = c if here is None else c[here]
        within = np.flatnonzero((c > lo) & (c < hi))
        here = within if here is None else here[within]
    return np.arange(len(points[0])) if here is None else here


# Shapes


def smooth_max(a: np.ndarray, b: np.ndarray, k: Number) -> np.ndarray:
    """The larger of two distances, with the crease rounded over about `k` mm."""
    return np.maximum(a, b) + np.maximum(k - np.abs(a - b), 0) ** 2 / (4 * k)


def smooth_min(a: np.ndarray, b: np.ndarray, k: Number) -> np.ndarray:
    """The smaller of two distances, with the crease rounded over about `k` mm."""
    return -smooth_max(-a, -b, k)


def ellipsoid(points: Points, centre: Vector, radii: Vector, frame: np.ndarray | None = None) -> np.ndarray:
    """Distance of an ellipsoid, exact to first order at its surface; the rows of `frame` are its axes."""
    q = [c - float(m) for c, m in zip(points, centre, strict=True)]  # float: a NumPy scalar would promote float32
    radii = [float(r) for r in radii]
    if frame is not None:
        q = turn(q, frame)
    norm = np.sqrt(sum((c / r) ** 2 for c, r in zip(q, radii, strict=True)))
    slope = np.sqrt(sum((c / r**2) ** 2 for c, r in zip(q, radii, strict=True)))
    return norm * (norm - 1) / np.maximum(slope, 1e-6)


def turn(q: Sequence, frame: np.ndarray) -> list[np.ndarray]:
    """Components of vectors q along the rows of `frame`."""
    return [sum(w * c for w, c in zip(row, q, strict=True)) for row in frame.tolist()]


def section(x: np.ndarray, y: np.ndarray, radii: tuple) -> np.ndarray:
    """Distance of a cylinder along z whose cross-section is a superellipse of power 2.5."""
    u, v = np.abs(x) / radii[0], np.abs(y) / radii[1]
    u15, v15 = u * np.sqrt(u), v * np.sqrt(v)
    norm = np.maximum((u15 * u + v15 * v) ** 0.4, 1e-3)
    return (norm - 1) * norm * np.sqrt(norm) / np.sqrt((u15 / radii[0]) ** 2 + (v15 / radii[1]) ** 2 + 1e-12)


def box(x: np.ndarray, y: np.ndarray, z: np.ndarray, radii: Vector) -> np.ndarray:
    """Distance of a box around the origin: the greatest of the distances of its faces."""
    return np.maximum(np.maximum(np.abs(x) - radii[0], np.abs(y) - radii[1]), np.abs(z) - radii[2])


def tube(points: Points, starts: np.ndarray, ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Distance of the union of k cylinders with round ends; starts and ends (k, 3), radii (k,).

    Distances above `REACH` mm may be replaced by a larger number, as most points are near few segments.
    """
    distance = np.full(points[0].shape, FAR, np.float32)
    extent = [(c.min(), c.max()) for c in points]
    for start, end, radius in zip(starts.astype(np.float32), ends.astype(np.float32), radii, strict=True):
        margin = radius + REACH
        here = indices_in_box(points, extent, np.minimum(start, end) - margin, np.maximum(start, end) + margin)
        axis = end - start
        q = [c[here] - s for c, s in zip(points, start, strict=True)]
        along = np.clip((q[0] * axis[0] + q[1] * axis[1] + q[2] * axis[2]) / (axis @ axis), 0, 1)
        square = sum((c - along * a) ** 2 for c, a in zip(q, axis, strict=True))
        distance[here] = np.minimum(distance[here], np.sqrt(square) - np.float32(radius))
    return distance


def tube_part(layers: str | Layers, path: np.ndarray, radii: np.ndarray | Number, **options) -> Part:
    """A tube along a path (k + 1, 3) in mm, or through segments (k, 2, 3)."""
    starts, ends = (path[:-1], path[1:]) if path.ndim == 2 else (path[:, 0], path[:, 1])
    radii = np.broadcast_to(radii, len(starts))
    low, high = np.minimum(starts, ends).min(0) - radii.max(), np.maximum(starts, ends).max(0) + radii.max()
    return Part(layers_of(layers), lambda p: tube(p, starts, ends, radii), low, high, **options)


def ellipsoid_part(
    layers: str | Layers, centre: Vector, radii: Vector, frame: np.ndarray | None = None, **options
) -> Part:
    """An ellipsoid, in a box that contains it in any orientation."""
    reach = np.asarray(radii) if frame is None else np.full(3, max(radii))
    low, high = np.asarray(centre) - reach, np.asarray(centre) + reach
    return Part(layers_of(layers), lambda p: ellipsoid(p, centre, radii, frame), low, high, **options)


def layers_of(layers: str | Layers) -> Layers:
    """Converts a single tissue to layers; layers are returned unmodified."""
    return ((layers, 0.0),) if isinstance(layers, str) else layers


def curve(knots: Sequence | np.ndarray, count: int) -> np.ndarray:
    """A smooth path (count + 1, 3) through the knots."""
    return make_interp_spline(np.arange(len(knots)), knots, k=min(3, len(knots) - 1))(
        np.linspace(0, len(knots) - 1, count + 1)
    )


def frame_of(*degrees: int | float) -> np.ndarray:
    """Axes of an organ rotated about x, y and z in this order, by degrees; rows for `ellipsoid`."""
    frame = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[j, i], one[i, j] = np.sin(angle), -np.sin(angle)
        frame = one @ frame
    return frame.T
