"""The organs of the phantom: positions, sizes and their random variation between patients.

Lengths are mm in the frame of `shapes`: x to the patient's right, y forwards, z upwards. Parts are listed in the order
of painting. A later solid part with a gap keeps clear of the earlier ones.
"""

import numpy as np
from numpy.random import Generator

from f3r_jax.data.phantom.body import Body, chest, spine, truncated_normal
from f3r_jax.data.phantom.shapes import (
    LEFT_KIDNEY,
    LIVER,
    RIGHT_KIDNEY,
    SPLEEN,
    Anatomy,
    Frame,
    Number,
    Part,
    Points,
    Vector,
    curve,
    draw_waves,
    ellipsoid,
    ellipsoid_part,
    frame_of,
    layers_of,
    smooth_max,
    tube_part,
    turn,
)

LEFT, RIGHT = -1, 1


def draw_anatomy(rng: Generator) -> Anatomy:
    """Draws a random patient."""
    body = Body(rng)
    portal = np.array([14.0, -4.0, 6.0]) + rng.normal(0, 4, 3)  # where the splenic vein ends
    liver = liver_distance(rng)
    parts = [
        *body.layers(),
        *chest(rng, body),
        *body.back_muscles(),
        *spine(rng, body),
        *great_vessels(rng, body),
        *kidney(rng, RIGHT),
        *kidney(rng, LEFT),
        *renal_vessels(body),
        *gallbladder(rng),
        Part(layers_of("liver"), liver, (-110, -90, -110), (130, 100, 120), gap=2.0, label=LIVER),
        *liver_vessels(rng, portal),
        *lesions(rng),
        *spleen(rng),
        *stomach(rng),
        *pancreas(rng, portal),
        *colon(rng),
        *small_bowel(rng),
        *mesentery(rng),
    ]
    waves = draw_waves(rng, 5, shortest=90, longest=200, amplitude=rng.uniform(2, 4))
    return Anatomy(tuple(parts), body.room, waves, draw_frame(rng))


def draw_frame(rng: Generator) -> Frame:
    """Draws a random position, mainly along z: the field of view contains more of the chest or more of the pelvis."""
    shift, scale = (
        truncated_normal(rng, 1, 3) * (6, 4, 14),
        (1 + truncated_normal(rng, 0.05)) * (1 + truncated_normal(rng, 0.025, 3)),
    )
    return Frame(tuple(shift.tolist()), tuple(scale.tolist()))


def great_vessels(rng: Generator, body: Body) -> list[Part]:
    """Aorta with coeliac trunk and mesenteric artery, vena cava, mesenteric vein."""
    aorta = body.along(-9 + truncated_normal(rng, 2), 28 + truncated_normal(rng, 1), np.linspace(-140, 150, 9))
    aorta[-4:, 1] -= np.linspace(2, 14, 4)  # into the chest behind the heart
    cava = body.along(21 + truncated_normal(rng, 2), 27 + truncated_normal(rng, 1), np.linspace(-140, 100, 9))
    cava[-4:] += np.linspace(0, 1, 4)[:, None] * (8, 20, 0)  # through the back of the liver to the heart
    wide, trunk = 9 + truncated_normal(rng, 1), aorta[4]

    def branch(*steps: Vector) -> np.ndarray:
        return curve([trunk + np.array(step) for step in steps], 8)

    return [
        tube_part("artery", aorta, wide, gap=1.0),
        tube_part("vein", cava, wide + 1.5, gap=1.0),
        tube_part("artery", branch((0, 0, 0), (1, 14, 2), (4, 26, -25), (8, 34, -70)), 3.5),
        tube_part("artery", branch((0, 0, 15), (2, 16, 18), (24, 24, 22)), 3.0),
        tube_part("vein", branch((24, 18, 0), (18, 30, -25), (22, 36, -70)), 5.0),
    ]


def renal_vessels(body: Body) -> list[Part]:
    """An artery and a vein to the hilum of either kidney."""

    def vessel(tissue: str, side: int, start: np.ndarray, radius: Number) -> Part:
        hilum = start * 0 + (side * 47, -30, -31 + 7 * (side == LEFT))
        return tube_part(tissue, curve([start, (start + hilum) / 2 + (0, 5, 3), hilum], 5), radius)

    artery, vein = (body.along(x, 27, np.array([z]))[0] for x, z in ((-9, -14), (21, -20)))
    return [
        vessel(tissue, side, start, radius)
        for side in (LEFT, RIGHT)
        for tissue, start, radius in (("artery", artery, 2.5), ("vein", vein, 4.0))
    ]


def kidney(rng: Generator, side: int) -> list[Part]:
    """Cortex, medullary pyramids, and the fat and pelvis of the sinus, which the label does not include."""
    height = -38 if side == RIGHT else -24
    centre = np.array([side * 61.0, -36.0, height]) + truncated_normal(rng, 1, 3) * (4, 3, 8)
    radii = np.array([28.5, 25.5, 53.0]) * (1 + truncated_normal(rng, 0.06, 3))
    frame = frame_of(
        10 + truncated_normal(rng, 4), -side * (14 + truncated_normal(rng, 4)), side * (-28 + truncated_normal(rng, 8))
    )
    label = RIGHT_KIDNEY if side == RIGHT else LEFT_KIDNEY
    turns = rng.uniform(0, 2 * np.pi, 2).tolist()
    to_hilum = -side * frame[0]
    hilum = centre + to_hilum * 0.75 * radii[0]

    def pyramids(p: Points) -> np.ndarray:
        u, v, w = turn([c - float(m) for c, m in zip(p, centre, strict=True)], frame)
        angle = np.arctan2(v * float(radii[0] / radii[1]), u)
        columns = np.cos(4 * angle + turns[0] + w / 15) * np.cos(w * 2 * np.pi / 38 + turns[1])
        depth = ellipsoid(p, centre, radii, frame)
        return depth + 9 - 5 * columns

    sinus_radii = np.array([0.66, 0.4, 0.52]) * radii
    return [
        ellipsoid_part("cortex", centre, radii, frame, gap=3.0, label=label),
        Part(layers_of("medulla"), pyramids, centre - 60, centre + 60, inside=0.0, solid=False),
        ellipsoid_part("fat", hilum, sinus_radii, frame, inside=-9.0, solid=False, label=0),
        ellipsoid_part("urine", centre + to_hilum * 0.5 * radii[0], 0.45 * sinus_radii, frame, solid=False),
    ]


def liver_distance(rng: Generator):
    """Distance of the liver: below the diaphragm, and above a visceral surface that rises to the left.

    The gap of its part keeps it inside the wall.
    """
    low = -72 + truncated_normal(rng, 9)
    tip = -62 + truncated_normal(rng, 14)
    rise = 0.66 + truncated_normal(rng, 0.05)
    hilum = np.array([22, 6, 0]) + truncated_normal(rng, 4, 3)
    phases = rng.uniform(0, 2 * np.pi, 2).tolist()

    def distance(p: Points) -> np.ndarray:
        x, y, z = p
        lobes = 5 * np.sin(x / 24 + phases[0]) + 4 * np.sin(y / 20 + phases[1])
        floor = (low + lobes + rise * (118 - x) - 0.25 * y - z) / float(np.sqrt(1 + rise**2))
        medial = (-14 - 0.85 * (y + 30) - x + 0.15 * z) / 1.32
        left = (tip - x) * 0.7 + 0.35 * (z - 40) * (z > 40)
        porta = -ellipsoid(p, hilum, (30, 17, 26))
        under = smooth_max(smooth_max(floor, medial, 30), left, 25)
        return smooth_max(under, porta, 12)

    return distance


def gallbladder(rng: Generator) -> list[Part]:
    """Gallbladder, present in three of four patients."""
    centre = np.array([48.0, 36.0, -26.0]) + truncated_normal(rng, 4, 3)
    radii = np.array([12.0, 13.0, 26.0]) * (1 + truncated_normal(rng, 0.1))
    if rng.random() > 0.75:
        return []
    return [ellipsoid_part((("bowel", 0.0), ("bile", 1.5)), centre, radii, frame_of(35, -15, 0), gap=3.0)]


def grow(rng: Generator, root: np.ndarray, heading: np.ndarray, length: Number, radius: Number, depth: int):
    """Draws segments (k, 2, 3) and radii (k,) of a branching vessel."""
    heading = heading / np.linalg.norm(heading)
    middle = root + heading * length / 2 + rng.normal(0, length / 12, 3)
    end = root + heading * length
    segments, radii = [(root, middle), (middle, end)], [radius, radius * 0.92]
    if depth > 0:
        turn = np.cross(heading, rng.normal(size=3))
        turn /= np.linalg.norm(turn)
        for sign in (-1, 1):
            child = heading + sign * rng.uniform(0.4, 0.8) * turn
            more = grow(rng, end, child, length * rng.uniform(0.65, 0.9), radius * 0.76, depth - 1)
            segments.extend(more[0])
            radii.extend(more[1])
    return segments, radii


def liver_vessels(rng: Generator, portal: np.ndarray) -> list[Part]:
    """Portal vein with its right and left branch, and three hepatic veins that join the vena cava."""
    gate = np.array([30.0, 6.0, 14.0])
    cava = np.array([26.0, -16.0, 66.0])
    trees = [
        grow(rng, gate, np.array(heading), length, radius, 3)
        for heading, length, radius in (((1.0, -0.35, 0.25), 30, 5.0), ((-0.75, 0.55, 0.6), 30, 4.2))
    ]
    trees += [
        grow(rng, cava, np.array(heading), length, radius, 2)
        for heading, length, radius in (
            ((1.0, 0.1, -0.35), 38, 4.6),
            ((0.5, 0.8, -0.4), 40, 4.2),
            ((-0.55, 0.85, -0.2), 32, 3.6),
        )
    ]
    return [
        tube_part("vein", np.array(segments), np.array(radii), inside=1.0, solid=False) for segments, radii in trees
    ] + [tube_part("vein", curve([portal, (portal + gate) / 2 + (0, 4, 0), gate], 4), 6.0, solid=False)]


def lesions(rng: Generator) -> list[Part]:
    """Lesions: none in half of the patients, one to three tumours or cysts in the others."""
    count = rng.integers(1, 4) if rng.random() < 0.5 else 0
    places = np.array([78.0, 0.0, 25.0]) + rng.uniform(-1, 1, (3, 3)) * (28, 45, 35)
    sizes = rng.uniform(5, 17, 3)
    tissues = rng.choice(["tumour", "tumour", "cyst"], 3).tolist()
    parts = []
    for place, size, tissue in zip(places[:count], sizes, tissues, strict=False):
        parts.append(ellipsoid_part(tissue, place, size * rng.uniform(0.8, 1.2, 3), inside=2.0, solid=False))
        if tissue == "tumour" and size > 11:
            parts.append(ellipsoid_part("necrosis", place, 0.45 * size * np.ones(3), inside=4.0, solid=False))
    return parts


def spleen(rng: Generator) -> list[Part]:
    """Spleen: a crescent at the left wall, concave towards stomach and kidney, with its vein."""
    centre = np.array([-84.0, -26.0, 32.0]) + truncated_normal(rng, 1, 3) * (3, 5, 7)
    radii = np.array([35.0, 47.0, 52.0]) * (1 + truncated_normal(rng, 0.1))
    frame = frame_of(-25 + truncated_normal(rng, 6), 8, -18 + truncated_normal(rng, 6))
    hollow = centre + np.array([42, 16, -4]) + truncated_normal(rng, 3, 3)

    def distance(p: Points) -> np.ndarray:
        return smooth_max(
            ellipsoid(p, centre, radii, frame), -ellipsoid(p, hollow, radii * (0.98, 0.95, 1.1), frame), 8
        )

    vein = curve([centre + np.array([12, 8, -4]), (-40, -14, 14), (10, -2, 8)], 8)
    return [
        Part(layers_of("spleen"), distance, centre - 60, centre + 60, gap=2.0, label=SPLEEN),
        tube_part("vein", vein, 3.5, gap=0.0),
    ]


def stomach(rng: Generator) -> list[Part]:
    """Fundus, body and antrum with wall, fluid, and gas in front of the fluid, as the patient is supine."""
    fill = rng.uniform(0.75, 1.1)
    path = curve([(-46, -22, 58), (-58, 8, 40), (-48, 38, 10), (-16, 46, -14), (22, 34, -12)], 12)
    path += truncated_normal(rng, 4, 3)
    radii = fill * np.interp(np.arange(12), [0, 3, 6, 9, 11], [30, 30, 24, 17, 12])
    level = rng.uniform(5, 45)
    walls = tube_part((("bowel", 0.0), ("chyme", 4.0)), path, radii, gap=2.5)
    gas = Part(layers_of("gas"), lambda p: level - p[1], walls.low, walls.high, inside=4.0, solid=False)
    return [walls, gas]


def pancreas(rng: Generator, portal: np.ndarray) -> list[Part]:
    """Pancreas along the splenic vein, duodenum around its head, adrenals."""
    path = curve([(34, 4, -26), (20, 12, -8), (-8, 16, 6), (-40, 2, 14), (-62, -14, 22)], 12) + truncated_normal(
        rng, 3, 3
    )
    radii = np.interp(np.arange(12), [0, 2, 6, 11], [14, 11, 9, 8]) + 1.2 * np.sin(np.arange(12) * 2.3)
    loop = curve([(30, 34, -8), (50, 16, -20), (48, 2, -52), (22, 4, -66), (-14, 6, -62)], 12)
    adrenals = [
        tube_part("bowel", np.array([[s * 36.0, -44, 6], [s * 34.0, -34, 16], [s * 46.0, -46, 8]]), 2.2, gap=1.0)
        for s in (LEFT, RIGHT)
    ]
    return [
        *adrenals,
        tube_part("pancreas", path, radii, gap=1.5),
        tube_part((("bowel", 0.0), ("chyme", 3.0)), loop, 12.0, gap=1.5),
    ]


def colon(rng: Generator) -> list[Part]:
    """Ascending, transverse and descending colon with haustra, stool and gas."""
    sag = truncated_normal(rng, 10)
    knots = [(88, -24, -150), (92, -18, -95), (86, 8, -70), (50, 50, -66 + sag), (0, 62, -60 + sag)]
    knots += [(-50, 54, -40 + sag / 2), (-88, 22, 0), (-98, -14, -14), (-98, -28, -70), (-92, -30, -150)]
    path = curve(knots, 72) + truncated_normal(rng, 3, 3)
    step = np.arange(72)
    caliber = np.interp(step, [0, 20, 48, 71], [22, 20, 17, 13]) * rng.uniform(0.85, 1.1)
    radii = caliber * (1 + 0.13 * np.sin(step * 1.25))
    gas_share = np.clip(np.interp(step, np.linspace(0, 71, 8), rng.uniform(-0.5, 1.0, 8)), 0.05, 0.9)
    gas = path[:-1] + np.stack([0 * step, 0.5 * (1 - gas_share) * radii, 0 * step], axis=1)
    bubbles = np.stack([gas, gas + np.diff(path, axis=0)], axis=1)
    return [
        tube_part((("bowel", 0.0), ("stool", 2.5)), path, radii, gap=2.0),
        tube_part("gas", bubbles, gas_share * radii, inside=2.5, solid=False),
    ]


def small_bowel(rng: Generator) -> list[Part]:
    """Loops in the lower belly, some with fluid, few with gas."""
    parts = []
    for _ in range(20):
        start = np.array([rng.uniform(-70, 65), rng.uniform(0, 62), rng.uniform(-125, -20)])
        heading = rng.normal(size=3) * (1, 0.5, 0.8)
        swing = rng.normal(size=3)
        step = np.linspace(0, 1, 4)[:, None]
        path = curve(start + 62 * step * heading / np.linalg.norm(heading) + 14 * np.sin(4 * step) * swing, 6)
        radius = rng.uniform(9, 13)
        content = str(rng.choice(["chyme", "bowel", "chyme", "gas"]))
        parts.append(tube_part((("bowel", 0.0), (content, 2.8)), path, radius, gap=1.2))
    return parts


def mesentery(rng: Generator) -> list[Part]:
    """Small vessels that spread in the fat."""
    roots = np.array([0.0, 20.0, -30.0]) + rng.normal(size=(24, 3)) * (14, 8, 22)
    tips = roots + rng.normal(size=(24, 3)) * (45, 24, 40)
    return [tube_part("vein", np.stack([roots, tips], axis=1), 1.6, gap=0.5)]
