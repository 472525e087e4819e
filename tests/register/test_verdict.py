"""The verdict on a registration: its evidence on scans of known placement, and its rules."""

import dataclasses

import numpy as np
import pytest

import affine_scans
from f3r_jax.data import resample
from f3r_jax.data.affine import coarse
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.affine.start import Candidate, Start
from f3r_jax.data.nifti import Grid
from f3r_jax.data.transforms import Transform
from f3r_jax.register import verdict
from f3r_jax.register.evidence import Evidence, gather

SHAPE, SPACING = (49, 41, 43), (5.0, 5.0, 5.0)
GOOD = Evidence(
    seen=95.0,
    body_dice=94.0,
    scales=(0.9, 1.1),
    rotation=3.0,
    likeness=60.0,
    information=1.05,
    smallest_volume=0.4,
    largest_volume=1.8,
    cycle_mm=6.0,
    apart_mm=None,
    mirrored=-8.0,
    upside_down=-9.0,
    back_to_front=-12.0,
)


def scan(to_world=None, contrast=np.asarray, centre=(0.0, 0.0, 0.0), shape=SHAPE):
    image = affine_scans.image(shape, affine_scans.grid(SPACING, shape, centre=centre), to_world, contrast)
    return coarse.coarse_scan(image, image, "mr")


def transform(matrix):
    grid = Grid((32, 32, 32), affine_scans.grid((8.0, 8.0, 8.0), (32, 32, 32)))
    return Transform(grid, np.asarray(matrix, float), np.zeros((*grid.shape, 3), np.float32))


@pytest.fixture(scope="module")
def fixed():
    return scan()


@pytest.fixture(scope="module")
def right(fixed):
    """The evidence of a right result, in another contrast and frame."""
    shift = resample.translation((60.0, -20.0, 12.0))
    moving = scan(shift, affine_scans.negative, centre=(60.0, -20.0, 12.0))
    return gather(fixed, moving, transform(shift))


def test_a_right_result_is_ok(right):
    assert right.seen > 95 and right.body_dice > 95
    assert right.scales == pytest.approx((1, 1)) and right.rotation == pytest.approx(0, abs=1e-6)
    assert right.likeness > 50 and right.information > 1.1
    assert right.smallest_volume == right.largest_volume == 1
    assert right.cycle_mm < 5 and right.mirrored < -5
    assert verdict.judge(right).level == verdict.OK


def test_a_place_that_is_wrong_is_less_alike(fixed, right):
    wrong = gather(fixed, scan(contrast=affine_scans.negative), transform(resample.translation((0.0, 0.0, 50.0))))
    assert wrong.likeness < right.likeness / 2 and wrong.information < right.information
    assert wrong.cycle_mm > 2 * right.cycle_mm
    assert verdict.judge(wrong).level != verdict.OK


@pytest.mark.parametrize(("axis", "name"), [(1, "back_to_front"), (2, "upside_down")])
def test_a_flipped_scan_matches_better_flipped(fixed, right, axis, name):
    """In a frame of its own, as the search does not need the header's position."""
    turn = np.eye(4)
    turn[axis, axis] = -1
    shift = resample.translation((60.0, -20.0, 12.0))
    flipped = scan(shift @ turn, affine_scans.negative, centre=(60.0, -20.0, 12.0))
    found = gather(fixed, flipped, transform(shift))
    assert getattr(found, name) > 10 and getattr(right, name) < -10
    other = {"upside_down": "back_to_front", "back_to_front": "upside_down"}[name]
    assert getattr(found, other) < getattr(found, name)
    assert any(name.replace("_", " ") in reason for reason in verdict.judge(found).reasons)
    assert not any("axes in its header" in reason for reason in verdict.judge(right).reasons)


def test_a_mirrored_scan_matches_better_mirrored(fixed, right):
    mirrored = scan(np.diag([-1.0, 1, 1, 1]), affine_scans.negative)
    found = gather(fixed, mirrored, transform(np.eye(4)))
    assert found.mirrored > 2.5 > right.mirrored
    (reason,) = [text for text in verdict.judge(found).reasons if "mirrored" in text]
    assert reason.endswith("% better if it is mirrored left to right")


def test_bodies_that_do_not_meet_have_failed(fixed):
    nowhere = gather(fixed, scan(), transform(resample.translation((500.0, 0.0, 0.0))))
    assert nowhere is None
    found = verdict.judge(nowhere)
    assert (found.level, found.reasons) == (verdict.FAILED, ["the two bodies do not meet"])
    assert found.to_json()["evidence"] is None


def test_stretch_and_rotation_are_those_of_the_matrix(fixed):
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    turned = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ np.diag([1.3, 0.8, 1.0, 1.0])
    found = gather(fixed, fixed, transform(turned))
    assert found.scales == pytest.approx((0.8, 1.3)) and found.rotation == pytest.approx(20)


def test_the_local_volume_is_that_of_the_deformation(fixed):
    grid = Grid((60, 60, 60), affine_scans.grid((4.0, 4.0, 4.0), (60, 60, 60)))
    half = -0.5 * (np.moveaxis(np.indices(grid.shape), 0, -1) - 29.5)
    found = gather(fixed, fixed, Transform(grid, np.eye(4), half.astype(np.float32)))
    assert found.smallest_volume == pytest.approx(0.125, rel=0.01)
    assert found.largest_volume == pytest.approx(0.125, rel=0.01)


def test_another_position_that_matches_as_well_is_named(fixed):
    u = np.zeros((*fixed.body.shape, 3), np.float32)
    best = Candidate(False, np.eye(4), u, 0.1, 0.1, 1.04)
    near = Candidate(False, resample.translation((0.0, 0.0, 8.0)), u, 0.1, 0.1, 1.039)
    far = Candidate(False, resample.translation((0.0, 0.0, 60.0)), u, 0.1, 0.1, 1.038)
    unlike = Candidate(False, resample.translation((0.0, 0.0, 90.0)), u, 0.1, 0.1, 1.01)
    costly = Candidate(False, resample.translation((0.0, 0.0, 90.0)), u, 0.12, 0.12, 1.04)
    of = {}
    for name, others in {"clear": [near, unlike, costly], "unclear": [near, far]}.items():
        start = Start(Transform(fixed.grid, np.eye(4), u), fixed, fixed, (best, *others))
        of[name] = gather(fixed, fixed, transform(np.eye(4)), start).apart_mm
    assert of == pytest.approx({"clear": 8, "unclear": 60})
    unclear = dataclasses.replace(GOOD, apart_mm=60.0)
    assert verdict.judge(unclear).reasons == ["another position, 60 mm away, matches about as well"]


@pytest.mark.parametrize(
    ("change", "check", "failed", "words"),
    [
        ("seen", 49.0, 19.0, "of the fixed body is in the moving scan's field of view"),
        ("body_dice", 59.0, 49.0, "outlines of the bodies differ"),
        ("scales", (0.45, 1.1), (0.3, 1.1), "scales by 0."),
        ("scales", (0.9, 1.9), (0.9, 3.0), "scales by 0.90 to"),
        ("rotation", 30.0, 70.0, "turns by"),
        ("likeness", None, None, "resemble each other"),
        ("smallest_volume", 0.03, None, "shrinks to 3 % of its volume"),
        ("cycle_mm", None, None, "a registration back ends"),
        ("mirrored", 5.0, None, "mirrored left to right"),
        ("upside_down", 5.0, None, "5.0 % better upside down: are the axes in its header right?"),
        ("back_to_front", 5.0, None, "5.0 % better back to front: are the axes in its header right?"),
    ],
)
def test_each_rule(change, check, failed, words):
    assert verdict.judge(GOOD) == verdict.Verdict(verdict.OK, [], GOOD)
    limits = verdict.LIMITS
    worse = -1 if change == "likeness" else 1
    check = getattr(limits[verdict.CHECK], change) + worse if check is None else check
    if failed is None and change in ("likeness", "cycle_mm"):
        failed = getattr(limits[verdict.FAILED], change) + worse
    for level, value in ((verdict.CHECK, check), (verdict.FAILED, failed)):
        if value is None:
            continue
        found = verdict.judge(dataclasses.replace(GOOD, **{change: value}))
        assert found.level == level
        assert len(found.reasons) == 1 and words in found.reasons[0]
        assert verdict.line(found.to_json()) == f"{level}: {found.reasons[0]}"


def test_a_scan_without_body_does_not_end_the_run(fixed):
    empty = CoarseScan(
        np.zeros_like(fixed.intensities), np.zeros_like(fixed.body), np.zeros_like(fixed.seen), fixed.grid
    )
    assert gather(fixed, empty, transform(np.eye(4))) is None
