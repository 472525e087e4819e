"""Which alignments a pair gets: the headers' frame, or a search where the frame is wrong."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import affine_scans
from f3r_jax.data import resample
from f3r_jax.data.affine import guided
from f3r_jax.data.affine import start as start_module
from f3r_jax.data.affine.fit import fit
from f3r_jax.data.nifti import Image
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.restraints import Restraints
from f3r_jax.register import alignment
from f3r_jax.register.alignment import CONFIRMED, align, coarse_copies, distance, mismatch_of
from f3r_jax.register.guidance import Guidance
from f3r_jax.register.scans import Scan

pytestmark = pytest.mark.usefixtures("few")
SHAPE, SPACING = (49, 41, 43), (5.0, 5.0, 5.0)


def scan(shift=(0.0, 0.0, 0.0), contrast=np.asarray):
    """The anatomy, `shift` mm away from the origin in its own frame and field of view."""
    there = affine_scans.grid(SPACING, SHAPE, centre=shift)
    image = affine_scans.image(SHAPE, there, resample.translation(shift), contrast)
    return Scan(image, image, "mr", image.grid)


def aligned(fixed, moving, how):
    return align(fixed, moving, coarse_copies(fixed, moving), how)


def test_a_frame_that_the_search_confirms_is_kept():
    found, search = aligned(scan(), scan((10.0, -6.0, 8.0), affine_scans.negative), "affine")
    assert len(found) == 1 and found[0].start is None
    assert search is not None and distance(search) < CONFIRMED
    np.testing.assert_allclose(found[0].matrix[:3, 3], (10, -6, 8), atol=3)


def test_a_fit_in_a_confirmed_frame_that_matches_worse_is_replaced_by_the_search(monkeypatch):
    pair = scan(), scan((10.0, -6.0, 8.0), affine_scans.negative)

    def failed(*args, initial, **options):
        return SimpleNamespace(matrix=resample.translation((60.0, 0.0, 0.0)) @ initial)

    monkeypatch.setattr(alignment, "fit", failed)
    found, search = aligned(*pair, "affine")
    assert len(found) == 1 and found[0].start is None and "matches worse" in found[0].line
    assert search is not None and np.array_equal(found[0].matrix, search.transform.matrix)
    np.testing.assert_allclose(found[0].matrix[:3, 3], (10, -6, 8), atol=6)


def test_a_confirmed_frame_of_scans_that_differ_much_is_tried_both_ways(monkeypatch):
    """Two people's scans in one frame: a mean Dice of 47 without the coarse deformation, and 68 with it."""
    pair = scan(), scan((10.0, -6.0, 8.0), affine_scans.negative)
    mismatch = aligned(*pair, "affine")[1].candidates[0].mismatch_deformed
    monkeypatch.setattr(start_module, "ALIKE", mismatch / 2)
    (searched, fitted), search = aligned(*pair, "affine")
    assert searched.start is search and fitted.start is None and distance(search) < CONFIRMED
    assert "differ much" in searched.line
    np.testing.assert_allclose(fitted.matrix[:3, 3], (10, -6, 8), atol=3)


@pytest.mark.parametrize(("part", "count"), [(2.0, 2), (0.5, 1)])
def test_scans_in_unrelated_frames_are_fitted_from_the_matrix_too_if_they_are_alike(monkeypatch, part, count):
    pair = scan(), scan((900.0, 0.0, 0.0), affine_scans.negative)
    mismatch = aligned(*pair, "affine")[1].candidates[0].mismatch_deformed
    monkeypatch.setattr(start_module, "ALIKE", mismatch * part)
    begins = []

    def fitted(*args, initial, **options):
        begins.append(initial)
        return fit(*args, initial=initial, **options)

    monkeypatch.setattr(alignment, "fit", fitted)
    found, search = aligned(*pair, "affine")
    assert [each.start for each in found] == [search, None][:count]
    assert len(begins) == count - 1 and all(np.array_equal(begin, search.transform.matrix) for begin in begins)
    np.testing.assert_array_equal(found[0].matrix, search.transform.matrix)
    for each in found[1:]:  # the fit is more exact than the search
        np.testing.assert_allclose(each.matrix[:3, 3], (900, 0, 0), atol=3)


def test_headers_that_overlap_by_accident_are_not_trusted():
    shift = np.array([110.0, 70.0, -60.0])
    fixed, moving = scan(), scan(tuple(shift), affine_scans.negative)
    assert resample.has_overlap(fixed.image.grid, moving.image.grid)
    (searched, fitted), search = aligned(fixed, moving, "affine")
    assert searched.start is search
    assert distance(searched.start) > CONFIRMED and fitted.start is None
    assert "the headers' frame matches worse" in searched.line
    points = np.random.default_rng(0).uniform(-40, 40, (50, 3)) @ np.eye(3, 4) + [0, 0, 0, 1]
    away = (points @ searched.matrix.T - points)[:, :3] - shift
    assert np.linalg.norm(away, axis=1).mean() < 15
    grid = searched.start.fixed.grid
    wrong = Transform(grid, np.eye(4), np.zeros((*grid.shape, 3), np.float32))
    right = Transform(grid, resample.translation(shift), np.zeros((*grid.shape, 3), np.float32))
    assert mismatch_of(searched.start, right) < 0.8 * mismatch_of(searched.start, wrong)


@pytest.mark.parametrize(("limit", "count"), [(np.inf, 2), (0.0, 1)])
def test_landmarks_give_the_position_and_a_search_only_what_they_allow(monkeypatch, limit, count):
    shift = np.array([900.0, 0.0, 0.0])
    here = np.random.default_rng(0).uniform(-60, 60, (8, 3))
    fixed = dataclasses.replace(scan(), landmarks=here)
    moving = dataclasses.replace(scan(tuple(shift), affine_scans.negative), landmarks=here + shift)
    copies = coarse_copies(fixed, moving)
    start = guided.start_from([resample.translation(shift)], *copies, lambda grid, matrix: ((), Restraints()))

    def searched(x):
        transform = dataclasses.replace(start.transform, matrix=resample.translation((x, 0.0, 0.0)))
        monkeypatch.setattr(
            alignment, "find_start", lambda *scans, headers: dataclasses.replace(start, transform=transform)
        )

    searched(860.0)
    monkeypatch.setattr(start_module, "ALIKE", limit)
    tried = []

    def start_from(matrices, *others):
        tried.extend(matrices)
        return guided.start_from(matrices, *others)

    monkeypatch.setattr(alignment, "start_from", start_from)
    found, search = align(fixed, moving, copies, "affine", guidance=Guidance(landmarks_weight=0.1))
    assert search is None and [each.start is None for each in found] == [False, True][:count]
    (matrix,) = tried
    np.testing.assert_allclose(matrix, resample.translation(shift), atol=1e-9)
    for each in found:
        away = np.linalg.norm(here @ each.matrix[:3, :3].T + each.matrix[:3, 3] - here - shift, axis=1)
        assert away.mean() < 12
    searched(901.0)
    align(fixed, moving, copies, "affine", both=False, guidance=Guidance(landmarks_weight=0.1))
    assert len(tried) == 3 and tried[2][0, 3] == 901.0


@pytest.mark.parametrize(("labels", "at", "expected"), [(1, 880.0, 880.0), (1, 800.0, 900.0), (2, 880.0, 900.0)])
def test_a_single_label_leaves_the_position_to_a_search_that_ends_near_it(monkeypatch, labels, at, expected):
    shift = np.array([900.0, 0.0, 0.0])

    def labelled(scan):
        inside = np.zeros(SHAPE, np.int16)
        inside[20:30, 15:25, 18:28] = 1
        inside[31:36, 15:25, 18:28] = labels
        return dataclasses.replace(scan, labels=Image(inside, scan.image.affine))

    fixed, moving = labelled(scan()), labelled(scan(tuple(shift), affine_scans.negative))
    copies, tried = coarse_copies(fixed, moving), []
    start = guided.start_from([resample.translation(shift)], *copies, lambda grid, matrix: ((), Restraints()))
    transform = dataclasses.replace(start.transform, matrix=resample.translation((at, 0.0, 0.0)))
    found = dataclasses.replace(start, transform=transform)

    def start_from(matrices, *others):
        tried.extend(matrices)
        return guided.start_from(matrices, *others)

    monkeypatch.setattr(alignment, "find_start", lambda *scans, headers: found)
    monkeypatch.setattr(alignment, "start_from", start_from)
    (aligned,), search = align(fixed, moving, copies, "affine", both=False, guidance=Guidance(labels_weight=0.1))
    assert search is None and aligned.start is not None and "labels that drive" in aligned.line
    (matrix,) = tried
    np.testing.assert_allclose(matrix[:3, 3], (expected, 0, 0), atol=3)


@pytest.mark.parametrize("how", ["rigid", "none"])
def test_other_affine_steps_do_not_search(how):
    (found,), search = aligned(scan(), scan((10.0, -6.0, 8.0)), how)
    assert found.start is None and search is None
