"""Motion of the body between two scans: breathing, belly, waves and a rigid motion."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.interpolate import make_interp_spline

from f3r_jax.data.phantom.shapes import Frame, Points, draw_waves, frame_of, sum_of_waves

KNOTS_MM = 8.0  # spacing of the coarse grid of the integration; the shortest wave is 10 times longer


@dataclass(frozen=True)
class Motion:
    """The flow of a stationary velocity (mm per unit time) for unit time, followed by a rigid motion."""

    velocity: Callable[[Points], list[np.ndarray]]
    rotation: np.ndarray  # (3, 3)
    shift: np.ndarray  # (3,) mm


def draw_motion(rng: Generator, frame: Frame) -> Motion:
    """Draws a motion: breathing of either sign, strongest in the liver, belly wall, waves, and a small rigid motion.

    A velocity and its negative are equally likely. So the mean of its flow is zero to first order. The second order is
    1.5 mm at most, where the mean length is up to 18 mm. It cannot be removed: it is half the sum of the mean
    displacement and the mean inverse displacement.
    """
    breath = float(np.clip(rng.normal(0, 22), -45, 45))
    belly = float(np.clip(rng.normal(0, 6), -12, 12))
    waves = draw_waves(rng, 6, shortest=85, longest=160, amplitude=3.8)
    degrees, shift = np.clip(rng.normal(0, 1.2, 3), -2.5, 2.5), np.clip(rng.normal(0, 2.5, 3), -5, 5)

    def velocity(p: Points) -> list[np.ndarray]:
        x, y, z = frame.of_patient(p)
        free, wall = mobility(x, y)
        front = np.exp(-((x / 85) ** 2) - ((y - 80) / 50) ** 2 - ((z + 10) / 90) ** 2)
        u = [free * wall * wave for wave in sum_of_waves(p, waves)]
        return [u[0], u[1] + belly * front, u[2] + breath * breathing(x, y, z)]

    return Motion(velocity, frame_of(*degrees), shift)


def breathing(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Fraction of the diaphragm's motion at points in mm: highest in the liver, 0 in spine and wall."""
    return np.exp(-(((x - 45) / 120) ** 2) - ((z - 45) / 105) ** 2) * mobility(x, y)[0]


def mobility(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mobility of tissue, from 0 in spine and wall to 1; and the same without the effect of the spine."""
    spine = np.exp(-((x / 42) ** 2)) / (1 + np.exp((y + 20) / 12))
    wall = np.exp(-(((x / 140) ** 2 + (y / np.where(y < 0, 95, 110)) ** 2) ** 3))
    return (1 - spine) * wall, wall


def displacement_mm(motion: Motion, axes: list[np.ndarray], *, backward: bool) -> np.ndarray:
    """Displacement (x, y, z, 3) float64 in mm of the motion or of its inverse.

    It is integrated on a coarse grid and interpolated by cubic splines. The motion is so smooth that the error is below
    0.02 mm, and the cost does not depend on the voxel spacing. The flow of the negative velocity is the inverse.
    """
    knots = [np.linspace(a[0] - 1, a[-1] + 1, max(4, int(np.ceil((a[-1] - a[0] + 2) / KNOTS_MM)) + 1)) for a in axes]
    start = np.stack(np.meshgrid(*knots, indexing="ij"))
    rotate = motion.rotation
    if backward:
        end = flow(motion.velocity, rigid(rotate.T, start - motion.shift[:, None, None, None]), -1.0)
    else:
        end = rigid(rotate, flow(motion.velocity, start, 1.0)) + motion.shift[:, None, None, None]
    field = end - start
    for knot, points in zip(knots, axes, strict=True):  # interpolates the first axis and moves it to the end
        weights = make_interp_spline(knot, np.eye(len(knot)))(points)
        field = np.einsum("cxyz,px->cyzp", field, weights)
    return np.moveaxis(field, 0, -1)


def rigid(rotation: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Rotates points (3, ...) about the origin."""
    return np.einsum("ij,jxyz->ixyz", rotation, points)


def flow(velocity: Callable[[Points], list[np.ndarray]], points: np.ndarray, time: float, steps: int = 3) -> np.ndarray:
    """Moves the points (3, ...) with the velocity for `time`, by a Runge-Kutta method of order 4."""

    def at(p: np.ndarray) -> np.ndarray:
        return np.stack(velocity(tuple(p)))

    h = time / steps
    for _ in range(steps):
        k1 = at(points)
        k2 = at(points + h / 2 * k1)
        k3 = at(points + h / 2 * k2)
        k4 = at(points + h * k3)
        points = points + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return points
