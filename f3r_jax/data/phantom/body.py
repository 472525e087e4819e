"""The frame of the phantom: body wall, cavity, diaphragm, back muscles, chest and spine.

Lengths are mm in the frame of `shapes`: x to the patient's right, y forwards, z upwards.
"""

from typing import overload

import numpy as np
from numpy.random import Generator

from f3r_jax.data.phantom.shapes import (
    FAR,
    Number,
    Part,
    Points,
    box,
    ellipsoid,
    frame_of,
    layers_of,
    section,
    smooth_min,
)

FAT, MUSCLE, LUNG = layers_of("fat"), layers_of("muscle"), layers_of("lung")


@overload
def truncated_normal(rng: Generator, size: Number) -> float: ...
@overload
def truncated_normal(rng: Generator, size: Number, length: int, /, *more: int) -> np.ndarray: ...
def truncated_normal(rng: Generator, size: Number, *shape: int) -> np.ndarray | float:
    """Draws normal deviates with standard deviation `size`, clipped at twice that, so that no patient is impossible."""
    deviates = np.clip(rng.normal(0, size, shape), -2 * size, 2 * size)
    return deviates if shape else float(deviates)


class Body:
    """Wall, cavity, diaphragm and axis of the spine of a random patient."""

    def __init__(self, rng: Generator):
        self.cavity_radii = 116 + truncated_normal(rng, 4), 80 + truncated_normal(rng, 4)
        self.wall = 11 + truncated_normal(rng, 1.5)
        self.fat = float(np.clip(rng.lognormal(np.log(13), 0.45), 5, 30))
        self.heights = 84 + truncated_normal(rng, 4), 72 + truncated_normal(rng, 5)  # of the right and left dome
        self.spine_y = -48 + truncated_normal(rng, 2)
        self.bend = truncated_normal(rng, 3), rng.uniform(0, 2 * np.pi)

    def cavity(self, p: Points) -> np.ndarray:
        x, y, z = p
        return section(x, y - 2, (self.cavity_radii[0] * (1 - 0.09 * ((z - 10) / 110) ** 2), self.cavity_radii[1]))

    def muscle(self, p: Points) -> np.ndarray:
        x, y, z = p
        half_x = (self.cavity_radii[0] + self.wall) * (1 - 0.09 * ((z - 10) / 110) ** 2)
        groove = 7 * np.exp(-((x / 16) ** 2)) * (y < 0)
        return section(x, y - groove + 8, (half_x, self.cavity_radii[1] + 10 + self.wall))

    def skin(self, p: Points) -> np.ndarray:
        x, y, z = p
        u = np.minimum(np.abs(x) / 120, 1)
        belly = np.clip(y / 80, 0, 1) * np.exp(-(((z + 50) / 80) ** 2))
        return self.muscle(p) - self.fat * (0.7 + 0.45 * u * u + 0.45 * belly)

    def diaphragm(self, p: Points) -> np.ndarray:
        """Distance of the space below the diaphragm: two domes, continued downwards by cylinders."""
        x, y, z = p
        z = np.maximum(z - 0.22 * y, 0)
        right = ellipsoid((x, y, z), (56, 4, 0), (self.cavity_radii[0] - 40, 94, self.heights[0]))
        left = ellipsoid((x, y, z), (-58, 4, 0), (self.cavity_radii[0] - 42, 94, self.heights[1]))
        return smooth_min(right, left, 30)

    def room(self, p: Points) -> np.ndarray:
        """Distance of the space for organs: in the cavity and below the diaphragm."""
        return np.maximum(self.cavity(p), self.diaphragm(p))

    def spine_frame(self, p: Points) -> Points:
        """Coordinates relative to the spine: sideways and forwards from its axis, and upwards."""
        x, y, z = p
        return x - self.bend[0] * np.sin(z / 60 + self.bend[1]), y - self.spine_y - 6 * np.cos((z + 60) / 70), z

    def along(self, x: Number, y: Number, z: np.ndarray) -> np.ndarray:
        """Path (k, 3) at the heights z with a constant position relative to the spine."""
        side, front, _ = self.spine_frame((np.zeros_like(z), np.zeros_like(z), z))
        return np.stack([x - side, y - front, z], axis=1)

    def layers(self) -> list[Part]:
        fascia = 0.4 * self.wall
        muscle = (("muscle", 0.0), ("fat", fascia), ("muscle", fascia + 1.2))
        return [
            Part((("skin", 0.0), ("fat", 2.0)), self.skin, solid=False),
            Part(muscle, self.muscle, solid=False),
            Part(FAT, self.cavity, solid=False),
        ]

    def back_muscles(self) -> list[Part]:
        """Psoas, quadratus lumborum, crura, and the fat between the extensors and the wall."""

        def psoas(p: Points) -> np.ndarray:
            x, y, z = self.spine_frame(p)
            radius = 3 + 16 * np.clip((25 - z) / 120, 0, 1) ** 0.8
            return np.hypot((np.abs(x) - 20 - 0.75 * radius) * 1.1, (y + 3) * 0.85) - radius

        def quadratus(p: Points) -> np.ndarray:
            x, y, z = self.spine_frame(p)
            return ellipsoid((np.abs(x), y, 0 * y), (52, -24, 0), (19, 7, 1)) + 7 * np.clip(1 + z / 40, 0, 1)

        def crus(p: Points) -> np.ndarray:
            x, y, _ = self.spine_frame(p)
            return np.hypot((np.abs(x) - 13) * 0.8, y - 17) - 5

        def cleft(p: Points) -> np.ndarray:
            x, y, _ = self.spine_frame(p)
            return np.maximum(np.abs(np.hypot((np.abs(x) - 30) / 1.5, y + 42) - 24) - 0.8, y + 24)

        return [
            Part(FAT, cleft, (-90, -130, -FAR), (90, -50, FAR), solid=False),
            Part(MUSCLE, psoas, (-80, -100, -FAR), (80, 0, 27)),
            Part(MUSCLE, quadratus, (-90, -100, -FAR), (90, 0, 10)),
            Part(MUSCLE, crus, (-40, -60, -40), (40, 0, 50)),
        ]


def chest(rng: Generator, body: Body) -> list[Part]:
    """Lungs, diaphragm, heart and ribs."""
    centre = np.array([-16.0, 24.0, 104.0]) + truncated_normal(rng, 4, 3)
    radii = np.array([58.0, 44.0, 46.0])
    frame = frame_of(0, 25, 0)
    offset, drop = rng.uniform(0, 27), 55 + truncated_normal(rng, 6)

    def lung(p: Points) -> np.ndarray:
        return np.maximum(body.cavity(p) + 1, 3 - body.diaphragm(p))

    def heart(p: Points) -> np.ndarray:
        return np.maximum(ellipsoid(p, centre, radii, frame), lung(p))

    def diaphragm(p: Points) -> np.ndarray:
        return np.maximum(np.abs(body.diaphragm(p) - 1.5) - 1.5, body.cavity(p))

    def ribs(p: Points) -> np.ndarray:
        x, y, z = p
        angle = np.arctan2(np.abs(x) / 118, -y / 82)  # 0 at the back, pi at the front
        height = z + drop * np.sin(0.72 * angle)
        across = (np.mod(height + offset, 27) - 13.5) / 1.25
        ring = np.hypot(across, (body.cavity(p) - 5) * 1.4) - 5
        ends = 40 * (angle - 1.25 - np.maximum(height + 30, 0) / 75)  # lower ribs end farther back
        return np.maximum(np.maximum(ring, ends), np.maximum(-30 - height, 20 * (0.33 - angle)))

    walls = (("fat", 0.0), ("heart", 4.0), ("blood", 15.0))
    return [
        Part(LUNG, lung, (-FAR, -FAR, -40), solid=False),
        Part(walls, heart, centre - 58, centre + 58, solid=False),
        Part(MUSCLE, diaphragm, solid=False),
        Part((("cortical", 0.0), ("marrow", 1.8)), ribs, solid=False),
    ]


def spine(rng: Generator, body: Body) -> list[Part]:
    """Vertebrae with discs, arch, processes and canal."""
    offset, period = rng.uniform(0, 33), 33 + truncated_normal(rng, 1)

    def level(z: np.ndarray) -> np.ndarray:
        return np.mod(z + offset, period) - period / 2

    def column(p: Points) -> np.ndarray:
        x, y, z = body.spine_frame(p)
        waist = 1.5 * np.cos(level(z) * 2 * np.pi / period)
        return ellipsoid((x, y, 0 * z), (0, 0, 0), (22, 16.5, 1)) + waist

    def vertebra(p: Points) -> np.ndarray:
        return np.maximum(column(p), np.abs(level(p[2])) - 12.5)

    def arch(p: Points) -> np.ndarray:
        x, y, z = body.spine_frame(p)
        z = level(z)
        ring = np.maximum(np.hypot(x, y + 24) - 13.5, np.abs(z) - 11)
        spinous = box(x, y + 43 + 0.3 * z, z + 5, (3.2, 16, 9))
        transverse = box(np.abs(x) - 24, y + 24 + 0.25 * np.abs(x) - 4, z - 2, (16, 4, 5))
        return np.minimum(np.minimum(ring, spinous), transverse)

    def canal(p: Points) -> np.ndarray:
        x, y, _ = body.spine_frame(p)
        return np.hypot(x, (y + 23.5) * 1.15) - 9.5

    low, high = (-60, -130, -FAR), (60, 0, FAR)
    return [
        Part(layers_of("disc"), column, low, high),
        Part((("cortical", 0.0), ("marrow", 1.8)), vertebra, low, high),
        Part((("cortical", 0.0), ("marrow", 2.5)), arch, low, high),
        Part((("fat", 0.0), ("fluid", 1.5)), canal, low, high, solid=False),
        Part((("cord", 5.0),), canal, (-60, -130, 0), high, solid=False),
    ]
