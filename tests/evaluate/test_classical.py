"""SyN, greedy and convexAdam from PyPI: f3r_jax reads each field as its maker does. Needs the extras."""

import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from f3r_jax.config import syn_config
from f3r_jax.evaluate import classical, metrics

SPACING = np.array([2.0, 2.0, 3.0])
NEEDS = {"SyN": ("ants",), "greedy": ("picsl_greedy", "SimpleITK"), "convexAdam": ("convexAdam", "torch")}
SHIFTS = np.array([2.5, -1.5, 0.5])  # voxels; differs along the axes, so that swapped or mirrored axes show


def ball(centre: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A smooth ellipsoid with a core off its centre, in [0, 1]."""
    axes = np.meshgrid(*(np.arange(size) - size / 2 for size in shape), indexing="ij")
    radius = sum(
        ((axis - c) / (size * scale)) ** 2
        for axis, c, size, scale in zip(axes, centre, shape, (0.3, 0.25, 0.35), strict=True)
    )
    core = sum((axis - c - 2) ** 2 for axis, c in zip(axes, centre, strict=True)) / 9
    return (1 / (1 + np.exp(6 * (radius - 1))) - 0.5 * np.exp(-core)).clip(0, 1).astype(np.float32)


def shifted_pair(shape: tuple[int, ...]) -> tuple[classical.VolumePair, np.ndarray, np.ndarray]:
    """A pair of other contrasts whose displacement is SHIFTS everywhere, and the ball's mask in either volume."""
    fixed, moving = ball(np.zeros(3), shape), ball(SHIFTS, shape)
    return classical.VolumePair(fixed, (1 - moving) ** 2, SPACING), fixed > 0.3, moving > 0.3


def quick(name: str):
    """The rival, with fewer iterations where it takes many."""
    if name == "SyN":
        settings = syn_config(option="").syn
        settings.iterations = (20, 20, 10)
        return lambda pair: classical.syn(pair, settings=settings)
    return {
        "greedy": lambda pair: classical.greedy(pair, iterations=(20, 20, 10)),
        "convexAdam": classical.convex_adam,
    }[name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.extras(*NEEDS[name])) for name in classical.BASELINES]
)
def test_recovers_a_shift(name):
    pair, fixed, moving = shifted_pair((32, 30, 28))
    field = quick(name)(pair)
    assert (field.shape, field.dtype) == ((*pair.fixed.shape, 3), np.float32)
    points = np.indices(fixed.shape) + np.moveaxis(field, -1, 0)
    warped = map_coordinates(moving.astype(np.float32), points, order=1) > 0.5
    before, after = metrics.dice(fixed, moving), metrics.dice(fixed, warped)
    assert after > before + 5
    found = field[fixed].mean(axis=0)
    assert np.linalg.norm(found - SHIFTS) < 0.5 * np.linalg.norm(SHIFTS)
    assert (np.sign(found) == np.sign(SHIFTS)).all()


def test_warped_by_our_field_as_by_greedy(picsl_greedy, sitk, monkeypatch):
    made = []

    def record():
        made.append(original())
        return made[-1]

    original = picsl_greedy.Greedy3D
    monkeypatch.setattr(picsl_greedy, "Greedy3D", record)
    pair, *_ = shifted_pair((24, 22, 20))
    field = classical.greedy(pair, iterations=(10, 10))
    made[0].execute("-rf fixed -rm moving warped -r field -V 0", warped=None)
    own = sitk.GetArrayFromImage(made[0]["warped"]).T
    ours = map_coordinates(pair.moving, np.indices(field.shape[:3]) + np.moveaxis(field, -1, 0), order=1)
    inside = (slice(4, -4),) * 3
    np.testing.assert_allclose(ours[inside], own[inside], atol=1e-3)


def test_every_rival_of_the_table_can_be_installed_with_the_extra():
    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())["project"]
    extra = " ".join(project["optional-dependencies"]["peers"])
    assert all(baseline.package in extra for baseline in classical.BASELINES.values())


def test_a_rival_without_its_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not any(rival.installed for rival in classical.BASELINES.values())
