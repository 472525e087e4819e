import dataclasses
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from conftest import data_settings
from f3r_jax.common.errors import UserError
from f3r_jax.data import cases, datasets, nifti, resample
from f3r_jax.data.affine.fit import Fit
from f3r_jax.data.phantom import generate

SHAPE = (24, 20, 16)
SPACING = (8.0, 8.0, 8.0)


def _config(root, **changes):
    return ConfigDict(data_settings(root, **({"shape": SHAPE, "spacing": SPACING, "test_cases": 1} | changes)))


def _phantom_config(root, **changes):
    protocols = {"ct_phases": ("venous", "plain"), "mr_sequences": ("t2", "in_phase")}
    counts = {"cases": 6, "validation_cases": 1, "test_cases": 2}
    return _config(root, **({"source": "phantom"} | protocols | counts | changes))


def _body(shape=SHAPE, radius=0.7):
    """1 within an ellipsoid, 0 around it."""
    axes = np.ogrid[tuple(slice(-1, 1, 1j * size) for size in shape)]
    return sum(axis**2 for axis in axes) < radius**2


def _fake_case(seed, index, *, shape, spacing):
    rng = np.random.default_rng([seed, index])
    ct = np.where(_body(shape), rng.uniform(-100, 300, shape), -1000).astype(np.float32)
    mr = np.where(_body(shape), rng.uniform(100, 900, shape), 2).astype(np.float32)
    labels = _body(shape, 0.4).astype(np.uint8)
    field = rng.normal(size=(*shape, 3)).astype(np.float32)
    return generate.PhantomCase(ct, mr, labels, 2 * labels, field, -field)


@pytest.fixture
def calls(monkeypatch):
    """A quick generator in place of the phantom's; the list of the indices asked for."""
    asked = []

    def make_case(seed, index, *, shape, spacing, ct_phases, mr_sequences):
        asked.append(index)
        return _fake_case(seed, index, shape=shape, spacing=spacing)

    monkeypatch.setattr(generate, "make_case", make_case)
    return asked


@pytest.fixture
def folder(tmp_path):
    """Three pairs in one frame: ct_0.nii.gz, mr_0.nii.gz, labels, ..."""
    for index in range(3):
        case = _fake_case(0, index, shape=SHAPE, spacing=SPACING)
        affine = np.diag([*SPACING, 1.0])
        for name in ("ct", "mr", "ct_labels", "mr_labels"):
            nifti.write(tmp_path / f"{name}_{index}.nii.gz", getattr(case, name), affine)
    return tmp_path


def _table(root, splits=("train", "train", "test")):
    rows = [f"mr_{i}.nii.gz,ct_{i}.nii.gz,mr_labels_{i}.nii.gz,ct_labels_{i}.nii.gz,{s}" for i, s in enumerate(splits)]
    header = "fixed,moving,fixed_labels,moving_labels,split"
    (root / "pairs.csv").write_text("\n".join([header, *rows]))
    return root


def _message(config, name=None, seed=0):
    with pytest.raises(UserError) as caught:
        data = datasets.open_dataset(config, seed=seed)
        data.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_phantom_cases_are_made_once_and_read_alike(tmp_path, calls):
    first = datasets.open_dataset(_phantom_config(tmp_path), seed=3)
    assert calls == [] and list(tmp_path.iterdir()) == []  # nothing before first use
    case = first.load("phantom_0002")
    (path,) = tmp_path.glob("*/case_0002.npz")
    before = path.read_bytes()
    again = datasets.open_dataset(_phantom_config(tmp_path), seed=3).load("phantom_0002")
    assert calls == [2] and path.read_bytes() == before
    for one, other in zip(case.arrays(), again.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    path.unlink()
    datasets.open_dataset(_phantom_config(tmp_path), seed=3).load("phantom_0002")
    assert calls == [2, 2] and path.read_bytes() == before


def test_phantom_settings_have_folders_of_their_own(tmp_path, calls):
    for changes, seed in (({}, 0), ({}, 1), ({"shape": (24, 20, 17)}, 0), ({"spacing": (8.0, 8.0, 7.5)}, 0)):
        datasets.open_dataset(_phantom_config(tmp_path, **changes), seed=seed).load("phantom_0000")
    assert len(calls) == len(list(tmp_path.iterdir())) == 4
    datasets.open_dataset(_phantom_config(tmp_path, direction="mr_to_ct", ct_window=(-100.0, 100.0)), seed=0).load(
        "phantom_0000"
    )
    assert len(calls) == 4
    datasets.open_dataset(_phantom_config(tmp_path, mr_sequences=("t2",)), seed=0).load("phantom_0000")
    assert len(calls) == len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(("key", "value"), [("mr_sequences", ("t2", "flair")), ("ct_phases", ())])
def test_an_unknown_protocol_of_the_phantom_is_refused(tmp_path, key, value):
    message = _message(_phantom_config(tmp_path, **{key: value}))
    assert message.startswith(f"data.{key} is {value}, expected some of ")


def test_killed_generation_leaves_no_half_file(tmp_path, calls, monkeypatch):
    def killed(path, **arrays):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.open_dataset(_phantom_config(tmp_path), seed=0).load("phantom_0000")
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []


def test_a_damaged_phantom_file_is_named(tmp_path, calls):
    datasets.open_dataset(_phantom_config(tmp_path), seed=0).load("phantom_0000")
    (path,) = tmp_path.glob("*/*.npz")
    path.write_bytes(path.read_bytes()[:100])
    message = _message(_phantom_config(tmp_path), "phantom_0000")
    assert str(path) in message and "delete it" in message


def test_direction_says_which_moves(tmp_path, calls):
    to_mr = datasets.open_dataset(_phantom_config(tmp_path), seed=0).load("phantom_0001")
    to_ct = datasets.open_dataset(_phantom_config(tmp_path, direction="mr_to_ct"), seed=0).load("phantom_0001")
    truth = _fake_case(0, 1, shape=SHAPE, spacing=SPACING)
    np.testing.assert_allclose(to_mr.moving, np.clip((truth.ct + 160) / 400, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(to_mr.moving, to_ct.fixed)
    np.testing.assert_array_equal(to_mr.fixed, to_ct.moving)
    np.testing.assert_array_equal(to_mr.moving_labels, truth.ct_labels)
    np.testing.assert_array_equal(to_mr.fixed_labels, truth.mr_labels)
    np.testing.assert_array_equal(to_ct.fixed_labels, truth.ct_labels)
    np.testing.assert_array_equal(to_mr.displacement, truth.ct_to_mr)
    np.testing.assert_array_equal(to_ct.displacement, truth.mr_to_ct)
    np.testing.assert_array_equal(to_mr.spacing, SPACING)
    for volume in (to_mr.fixed, to_mr.moving):
        assert volume.dtype == np.float32 and volume.min() == 0 and volume.max() == 1 and not volume.flags.writeable


def test_the_real_phantom_is_read_alike(tmp_path):
    config = _phantom_config(tmp_path, shape=(32, 32, 16), spacing=(10.0, 10.0, 14.0))
    cases = [datasets.open_dataset(config, seed=0).load("phantom_0000") for _ in range(2)]
    for one, other in zip(cases[0].arrays(), cases[1].arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(np.unique(cases[0].fixed_labels)) <= {0, 1, 2, 3, 4}
    assert cases[0].displacement.shape == (32, 32, 16, 3)


def test_the_split_is_drawn_by_seed(tmp_path):
    draws = [datasets.open_dataset(_phantom_config(tmp_path, cases=20), seed=seed).split for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert {key: len(names) for key, names in draws[0].items()} == {"train": 17, "validation": 1, "test": 2}
    assert sorted(sum(draws[0].values(), ())) == [f"phantom_{index:04d}" for index in range(20)]


def test_too_few_cases_for_a_split(folder):
    message = _message(_phantom_config(folder, cases=4))
    assert "4 cases" in message and "need 5" in message
    (folder / "pairs.csv").write_text("fixed,moving\nmr_0.nii.gz,ct_0.nii.gz\n")
    assert str(folder) in _message(_config(folder)) and "1 cases" in _message(_config(folder))
    assert "training needs at least 2" in _message(_config(_table(folder, ("train", "test", "test"))))
    assert "the test needs one" in _message(_config(_table(folder, ("train", "train", "train"))))
    assert "data.cases is 4, but there are 3" in _message(_config(_table(folder), cases=4))
    assert "training needs at least 2" in _message(_config(_table(folder), cases=1))


def test_nifti_pairs_come_on_the_working_grid(folder):
    data = datasets.open_dataset(_config(_table(folder)), seed=0)
    assert data.split == {"train": ("mr_0", "mr_1"), "validation": (), "test": ("mr_2",)}
    data.check()
    case, truth = data.load("mr_1"), _fake_case(0, 1, shape=SHAPE, spacing=SPACING)
    np.testing.assert_allclose(case.moving, np.clip((truth.ct + 160) / 400, 0, 1), atol=1e-5)
    np.testing.assert_array_equal(case.fixed_labels, truth.mr_labels)
    np.testing.assert_allclose(case.affine, np.diag([*SPACING, 1]), atol=1e-9)
    assert case.displacement is None
    back = datasets.open_dataset(_config(folder, direction="mr_to_ct"), seed=0).load("mr_1")
    np.testing.assert_array_equal(back.fixed, case.moving)
    np.testing.assert_array_equal(back.moving_labels, case.fixed_labels)


def test_the_same_scan_stored_in_another_orientation_gives_the_same_case(folder):
    before = datasets.open_dataset(_config(_table(folder)), seed=0).load("mr_0")
    image = nifti.read(folder / "ct_0.nii.gz")
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(SHAPE[:2]) - 1
    nifti.write(folder / "ct_0.nii.gz", image.data[::-1, ::-1], image.affine @ flip)  # LPS
    after = datasets.open_dataset(_config(folder), seed=0).load("mr_0")
    np.testing.assert_allclose(after.moving, before.moving, atol=1e-5)


def test_missing_labels_are_none_and_landmarks_are_voxels(folder):
    (folder / "mr.csv").write_text("x,y,z\n8,16,24\n")
    (folder / "ct.csv").write_text("x,y,z\n0,0,80\n")
    row = "mr_0.nii.gz,ct_0.nii.gz,mr.csv,ct.csv,"
    table = f"fixed,moving,fixed_landmarks,moving_landmarks,split\n{row}train\n{row}train\n{row}test\n"
    (folder / "pairs.csv").write_text(table)
    case = datasets.open_dataset(_config(folder), seed=0).load("mr_0")
    assert case.fixed_labels is None and case.moving_labels is None
    np.testing.assert_allclose(case.fixed_landmarks, [[1, 2, 3]], atol=1e-9)
    np.testing.assert_allclose(case.moving_landmarks, [[0, 0, 10]], atol=1e-9)


def test_scans_in_unrelated_frames_need_the_body_centre(folder):
    image = nifti.read(folder / "ct_0.nii.gz")
    affine = image.affine.copy()
    affine[:3, 3] += (1000, -700, 400)
    (folder / "ct.csv").write_text("x,y,z\n1080,-620,480\n")
    (folder / "mr.csv").write_text("x,y,z\n80,80,80\n")
    for name in ("ct_0.nii.gz", "ct_labels_0.nii.gz"):
        nifti.write(folder / name, nifti.read(folder / name).data, affine)
    row = "mr_0.nii.gz,ct_0.nii.gz,mr.csv,ct.csv,ct_labels_0.nii.gz,"
    table = f"fixed,moving,fixed_landmarks,moving_landmarks,moving_labels,split\n{row}train\n{row}train\n{row}test\n"
    (folder / "pairs.csv").write_text(table)
    message = _message(_config(folder))
    assert "ct_0.nii.gz" in message and "mr_0.nii.gz" in message and "body_centre" in message
    case = datasets.open_dataset(_config(folder, initialisation="body_centre"), seed=0).load("mr_0")
    np.testing.assert_allclose((case.moving_affine - case.affine)[:3, 3], (1000, -700, 400), atol=4)
    np.testing.assert_allclose(case.moving_landmarks, case.fixed_landmarks, atol=0.5)
    assert (case.moving_labels.astype(bool) == _body(SHAPE, 0.4)).mean() > 0.97
    assert case.moving.max() > 0.5


@pytest.mark.parametrize("how", ["rigid", "affine"])
def test_a_fitted_start_takes_labels_and_landmarks_along(folder, monkeypatch, how):
    asked, matrix = [], resample.translation((8.0, -16.0, 8.0))

    def fit(fixed, moving, *, initial, degrees, related):
        assert fixed.data.max() == 1 and moving.data.max() == 1
        np.testing.assert_array_equal(initial, np.eye(4))  # the headers share a frame
        asked.append((Path(moving.path).name, degrees, related))
        return Fit(matrix, 0.1, 0.2, 1.0)

    monkeypatch.setattr(cases, "fit", fit)
    (folder / "ct.csv").write_text("x,y,z\n48,24,88\n")
    row = "mr_0.nii.gz,ct_0.nii.gz,ct.csv,ct.csv,ct_labels_0.nii.gz,"
    table = f"fixed,moving,fixed_landmarks,moving_landmarks,moving_labels,split\n{row}train\n{row}train\n{row}test\n"
    (folder / "pairs.csv").write_text(table)
    before = datasets.open_dataset(_config(folder), seed=0).load("mr_0")
    data = datasets.open_dataset(_config(folder, initialisation=how), seed=0)
    case = data.load("mr_0")
    np.testing.assert_allclose(case.moving_affine, matrix @ case.affine)
    np.testing.assert_allclose(case.moving[3:20, 3:-3, 3:-3], before.moving[4:21, 1:-5, 4:-2], atol=1e-5)
    np.testing.assert_array_equal(case.moving_labels[3:20, 3:-3, 3:-3], before.moving_labels[4:21, 1:-5, 4:-2])
    np.testing.assert_allclose(case.moving_landmarks, [[5, 5, 10]], atol=1e-9)
    monkeypatch.setattr(datasets, "CACHE_BYTES", 1)
    data.load("mr_0_2")
    data.load("mr_0")
    assert asked.count(("ct_0.nii.gz", how, True)) == 2  # once a case, though the cache dropped the first


def test_an_affine_start_in_unrelated_frames(folder):
    image = nifti.read(folder / "ct_0.nii.gz")
    far = image.affine.copy()
    far[:3, 3] += (1000, -700, 400)
    nifti.write(folder / "far.nii.gz", image.data, far)
    row = "mr_0.nii.gz,far.nii.gz,"
    (folder / "pairs.csv").write_text(f"fixed,moving,split\n{row}train\n{row}train\n{row}test\n")
    assert '"rigid" or "affine"' in _message(_config(folder))
    case = datasets.open_dataset(_config(folder, initialisation="affine"), seed=0).load("mr_0")
    assert np.count_nonzero((case.fixed > 0) & (case.moving > 0)) > 0.7 * np.count_nonzero(case.fixed > 0)


def test_bad_voxels_show_on_check(folder):
    image = nifti.read(folder / "mr_1.nii.gz")
    image.data[3, 3, 3] = np.inf
    nifti.write(folder / "mr_1.nii.gz", image.data, image.affine)
    data = datasets.open_dataset(_config(_table(folder)), seed=0)
    with pytest.raises(UserError, match=r"mr_1.nii.gz: 1 of 7680 voxels are NaN"):
        data.check()


def test_a_working_grid_that_misses_the_body(folder):
    image = nifti.read(folder / "ct_0.nii.gz")
    nifti.write(folder / "ct_0.nii.gz", np.where(_body(SHAPE, 0.6), -1000, image.data), image.affine)
    message = _message(_config(_table(folder), shape=(2, 2, 2)), "mr_0")
    assert "ct_0.nii.gz: is constant on the working grid" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "dicom"),
        ("direction", "ct_to_ct"),
        ("initialisation", "none"),
        ("shape", (24, 20)),
        ("shape", (24, 20, 0)),
        ("shape", (24, 20, 1.5)),
        ("spacing", (1.0, 1.0, -1.0)),
        ("spacing", (1.0, float("nan"), 1.0)),
        ("cases", -1),
        ("ct_window", (240.0, -160.0)),
        ("mr_percentiles", (1.0, 101.0)),
    ],
)
def test_settings_that_no_data_could_satisfy(tmp_path, key, value):
    assert f"data.{key} is" in _message(_config(tmp_path, **{key: value}))


@pytest.mark.parametrize("how", ["body_centre", "rigid", "affine"])
def test_the_phantom_has_no_use_for_a_start(tmp_path, how):
    assert "data.initialisation" in _message(_phantom_config(tmp_path, initialisation=how))


def test_the_cache_is_bounded_and_threads_share_it(tmp_path, calls, monkeypatch):
    data = datasets.open_dataset(_phantom_config(tmp_path), seed=0)
    one = sum(array.nbytes for array in data.load("phantom_0000").arrays())
    calls.clear()
    workers = [threading.Thread(target=data.check) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(calls) == [1, 2, 3, 4, 5]
    assert data.load("phantom_0003") is data.load("phantom_0003")
    monkeypatch.setattr(datasets, "CACHE_BYTES", 2 * one)
    small = datasets.open_dataset(_phantom_config(tmp_path), seed=0)
    kept = small.load("phantom_0000")
    small.load("phantom_0001")
    assert small.load("phantom_0000") is kept
    small.load("phantom_0002")  # pushes out 0001, used least recently
    assert small.load("phantom_0000") is kept
    monkeypatch.setattr(datasets, "CACHE_BYTES", 1)
    assert dataclasses.replace(small.load("phantom_0004")).name == "phantom_0004"


@pytest.mark.skipif("F3R_REAL_PAIR" not in os.environ, reason="F3R_REAL_PAIR names no folder with a real pair")
@pytest.mark.parametrize("direction", cases.DIRECTIONS)
def test_a_real_pair(tmp_path, direction):
    source = Path(os.environ["F3R_REAL_PAIR"]).resolve()
    row = ",".join(str(source / f"{name}.nii.gz") for name in ("mr", "ct", "mr_label", "ct_label"))
    (tmp_path / "pairs.csv").write_text(
        "fixed,moving,fixed_labels,moving_labels,split\n"
        + "".join(f"{row},{key}\n" for key in ("train", "train", "test"))
    )
    changes = {"shape": (64, 64, 48), "spacing": (5.0, 5.0, 5.0), "direction": direction}
    assert "body_centre" in _message(_config(tmp_path, **changes))
    data = datasets.open_dataset(_config(tmp_path, initialisation="body_centre", **changes), seed=0)
    assert data.split == {"train": ("mr", "mr_2"), "validation": (), "test": ("mr_3",)}
    case = data.load("mr")
    for volume, labels in ((case.fixed, case.fixed_labels), (case.moving, case.moving_labels)):
        assert volume.min() == 0 and volume.max() > 0.9 and set(np.unique(labels)) == {0, 1, 2, 3, 4}
    fixed, moving = case.fixed > 0.05, case.moving > 0.05
    assert np.count_nonzero(fixed & moving) > 0.6 * min(np.count_nonzero(fixed), np.count_nonzero(moving))
    assert np.count_nonzero((case.fixed_labels == 1) & (case.moving_labels == 1)) > 0
