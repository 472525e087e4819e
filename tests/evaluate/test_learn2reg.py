"""The challenge's scores against a slow transcription of its formulas, hand-made values, files in any orientation."""

import itertools
import json
import math

import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from conftest import SHAPE, TINY_CONFIG, blob, data_settings
from f3r_jax.common.errors import UserError
from f3r_jax.data import cases, nifti
from f3r_jax.evaluate import learn2reg, learn2reg_files, metrics

SPACING = (20.0, 20.0, 16.0)

# surface-distance 0.1 calls SciPy by names that will go in SciPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")


def smooth_field(rng, shape, *, size=1.0, dtype=np.float64, order="C"):
    noise = ndimage.gaussian_filter(rng.normal(size=(*shape, 3)), (2, 2, 2, 0))
    return np.asarray(size / noise.std() * noise, dtype, order=order)


def blocks(rng, shape):
    """A label map of a few overlapping boxes, as floats, which is what a file gives."""
    labels = np.zeros(shape)
    for value in (1, 2, 3, 4):
        start = value + rng.integers(0, 3, size=3)
        labels[tuple(slice(first, first + size // 3) for first, size in zip(start, shape, strict=True))] = value
    return labels


# The reference: matrix by matrix with the challenge's kernel, cubic spline and masked arrays; labels voxel by voxel.


def reference_determinant(field):
    def derivative(component, axis):
        kernel = np.zeros((3, 3, 3))
        kernel[tuple(np.eye(3, dtype=int)[axis] * -1 + 1)], kernel[tuple(np.eye(3, dtype=int)[axis] + 1)] = -0.5, 0.5
        return ndimage.correlate(field[..., component], kernel, mode="constant", cval=0.0)

    gradient = np.stack([np.stack([derivative(c, axis) for c in range(3)]) for axis in range(3)])
    j = (gradient + np.eye(3).reshape(3, 3, 1, 1, 1))[:, :, 2:-2, 2:-2, 2:-2]
    first = j[0, 0] * (j[1, 1] * j[2, 2] - j[1, 2] * j[2, 1])
    second = j[1, 0] * (j[0, 1] * j[2, 2] - j[0, 2] * j[2, 1])
    third = j[2, 0] * (j[0, 1] * j[1, 2] - j[0, 2] * j[1, 1])
    return first - second + third


def reference_spread(field, mask=None):
    logs = np.log((reference_determinant(field) + 3).clip(0.000000001, 1000000000))
    return logs.std() if mask is None else np.ma.MaskedArray(logs, 1 - mask[2:-2, 2:-2, 2:-2]).std()


def reference_warp(labels, field):
    warped = np.zeros(field.shape[:3])
    for voxel in np.ndindex(*field.shape[:3]):
        point = np.array(voxel) + field[voxel]
        if (point >= 0).all() and (point <= np.array(labels.shape) - 1).all():
            warped[voxel] = labels[tuple(np.floor(point + 0.5).astype(int))]
    return warped


def reference_scores(field, fixed, moving, mask, library):
    warped = reference_warp(moving, field)
    dice, hd95 = [], []
    for label in (1, 2, 3, 4):
        a, b = fixed == label, warped == label
        if a.sum() == 0 or (moving == label).sum() == 0:
            dice.append(np.nan)
            hd95.append(np.nan)
            continue
        dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        distances = library.compute_surface_distances(a, b, np.ones(3))
        hd95.append(library.compute_robust_hausdorff(distances, 95.0))
    return {"LogJacDetStd": reference_spread(field, mask), "DSC": np.nanmean(dice), "HD95": np.nanmean(hd95)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("order", "CF")  # nibabel hands out arrays in Fortran's order
def test_every_bit_of_the_reference(surface_distance, dtype, order):
    rng = np.random.default_rng(4)
    shape = (21, 18, 17)
    field = smooth_field(rng, shape, dtype=dtype, order=order)
    fixed, moving = (np.asarray(blocks(rng, shape), order=order) for _ in range(2))
    mask = np.asarray(ndimage.binary_erosion(np.ones(shape), iterations=3), np.float64, order=order)
    np.testing.assert_array_equal(learn2reg.jacobian_determinant(field), reference_determinant(field))
    np.testing.assert_array_equal(learn2reg.warp_labels(moving, field), reference_warp(moving, field))
    assert learn2reg.evaluate_case(field, None, None)["LogJacDetStd"]["mean"] == reference_spread(field)
    scores = learn2reg.evaluate_case(field, fixed, moving, mask=mask)
    expected = reference_scores(field, fixed, moving, mask, surface_distance)
    assert {name: scores[name]["mean"] for name in expected} == expected
    integers = learn2reg.evaluate_case(field, fixed.astype(np.uint8), moving.astype(np.int16), mask=mask > 0)
    assert integers == scores


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_bit_of_the_keypoint_error(dtype):
    rng = np.random.default_rng(5)
    field = smooth_field(rng, (14, 12, 13), dtype=dtype)
    fixed, moving = rng.uniform(-1, 13, size=(2, 30, 3))
    spacing = tuple(np.float32([1.5, 1.1, 3.3]))  # as a header has it
    expected = []
    for point, target in zip(fixed, moving, strict=True):
        shift = [ndimage.map_coordinates(field[..., axis], point[:, None])[0] for axis in range(3)]
        expected.append(np.linalg.norm(((point + np.array(shift) - target) * spacing)[None], axis=1)[0])
    scores = learn2reg.evaluate_case(field, None, None, keypoints=learn2reg.Keypoints(fixed, moving, spacing))
    assert scores["TRE"] == {"mean": np.array(expected).mean(), "detailed": expected}


def test_a_keypoint_error_by_hand():
    """A spline goes through the voxels: there the field's own value counts, (1, 2, 3), then the moving spacing."""
    field = np.zeros((6, 6, 6, 3))
    field[2, 3, 4] = (1, 2, 3)
    keypoints = learn2reg.Keypoints(np.array([[2, 3, 4]]), np.array([[0, 5, 7]]), (2.0, 1.0, 1.0))
    assert learn2reg.target_registration_error(field, keypoints) == pytest.approx([6.0])


def test_the_spread_by_hand():
    """Along x the map keeps volume, then stretches by 5: determinants 1, 3 where both meet, 5; logs of 4, 6 and 8."""
    field = np.zeros((12, 8, 9, 3))
    field[6:, ..., 0] = 4 * np.arange(6)[:, None, None] + 4
    determinants = [1, 1, 1, 3, 5, 5, 5, 5]  # x = 2 to 9; at x = 5 the difference is half of 4
    expected = np.broadcast_to(np.array(determinants)[:, None, None], (8, 4, 5))
    np.testing.assert_array_equal(learn2reg.jacobian_determinant(field), expected)
    scores = learn2reg.evaluate_case(field, None, None)
    assert set(scores) == {"LogJacDetStd", "num_foldings"}
    assert scores["LogJacDetStd"]["mean"] == pytest.approx(np.std(np.log(np.array(determinants) + 3)))
    half = np.zeros((12, 8, 9))
    half[4:6] = half[10:] = 1  # of the inner planes x = 4 and 5, determinants 1 and 3; the last two planes are cropped
    scores = learn2reg.evaluate_case(field, None, None, mask=half)
    assert scores["LogJacDetStd"]["mean"] == pytest.approx((math.log(6) - math.log(4)) / 2)
    assert math.isnan(learn2reg.evaluate_case(field, None, None, mask=0 * half)["LogJacDetStd"]["mean"])


def test_a_matrix_has_its_determinant():
    matrix = np.array([[1.0, 0.3, 0.1], [-0.2, 1.5, 0.0], [0.4, 0.2, 0.8]])
    grid = np.moveaxis(np.indices((7, 8, 9)), 0, -1)
    found = learn2reg.jacobian_determinant(grid @ (matrix - np.eye(3)).T)
    np.testing.assert_allclose(found, np.linalg.det(matrix), rtol=1e-12)


def test_folding_is_never_counted():
    """The map runs backwards along x: our count is 100 %, the challenge's 0, and the log is that of the clip."""
    field = np.zeros((8, 8, 8, 3), np.float32)
    field[..., 0] = -5 * np.arange(8)[:, None, None]
    assert metrics.folding_percent(field) == 100.0
    np.testing.assert_array_equal(learn2reg.jacobian_determinant(field), np.full((4, 4, 4), -4.0))
    assert learn2reg.evaluate_case(field, None, None)["num_foldings"]["mean"] == 0.0


def test_labels_are_nearest_and_zero_just_outside():
    labels = np.arange(1, 6).reshape(5, 1, 1)
    for shift, expected in ((0.4, [1, 2, 3, 4, 0]), (0.6, [2, 3, 4, 5, 0]), (-0.1, [0, 2, 3, 4, 5])):
        field = np.zeros((5, 1, 1, 3))
        field[..., 0] = shift
        assert learn2reg.warp_labels(labels, field).ravel().tolist() == expected


def test_scores_of_labels_by_hand(surface_distance):
    """1 lies 2 voxels off: Dice 1/2 for a cube of 4, HD95 2. 2 is lost, 3 only in the fixed map, 4 in the moving."""
    fixed, moving = np.zeros((20, 20, 20)), np.zeros((20, 20, 20))
    fixed[4:8, 4:8, 4:8] = moving[6:10, 4:8, 4:8] = 1
    fixed[12:14, 12:14, 12:14] = moving[12:14, 12:14, 12:14] = 2
    fixed[0, 0, 0], moving[0, 0, 0] = 3, 4
    field = np.zeros((20, 20, 20, 3))
    field[12:14, 12:14, 12:14] = 5.0
    scores = learn2reg.evaluate_case(field, fixed, moving)
    dice, hd95 = scores["DSC"]["detailed"], scores["HD95"]["detailed"]
    assert (dice[1], hd95[1]) == (0.5, 2.0)
    assert (dice[2], hd95[2]) == (0.0, math.inf)
    assert all(math.isnan(score[label]) for score in (dice, hd95) for label in (3, 4))
    assert (scores["DSC"]["mean"], scores["HD95"]["mean"]) == (0.25, math.inf)
    nothing = learn2reg.evaluate_case(field, fixed, moving, labels=(7,))
    assert math.isnan(nothing["DSC"]["mean"]) and math.isnan(nothing["HD95"]["mean"])


def test_aggregates_by_hand():
    cases = [{"DSC": {"mean": value}, "HD95": {"mean": 1.0}} for value in (0.5, 0.7, 0.9)] + [{"DSC": {"mean": 0.9}}]
    found = learn2reg.aggregate(cases)
    assert set(found) == {"DSC"}  # the last case has no HD95
    assert found["DSC"] == pytest.approx({"mean": 0.75, "std": math.sqrt(0.11 / 4), "30": 0.68})
    assert math.isnan(learn2reg.aggregate([{"DSC": {"mean": math.nan}}, *cases])["DSC"]["mean"])
    assert learn2reg.aggregate([]) == {}


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"surface-distance.*EXTRAS=baselines"):
        learn2reg.require_surface_distance()


def test_submission_names():
    assert learn2reg.submission_name(6, 6) == learn2reg.submission_name("0006", "0006") == "disp_0006_0006.nii.gz"


def test_a_submission_is_read_as_the_challenge_reads_it(tmp_path):
    field = smooth_field(np.random.default_rng(0), (9, 8, 7), dtype=np.float32)
    path = learn2reg.write_submission(tmp_path / "new", "disp_0001_0002.nii.gz", field)
    stored = nibabel.load(path)
    assert stored.shape == (9, 8, 7, 3) and stored.get_data_dtype() == np.float32
    read = learn2reg.read_submission(path)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, field)
    np.testing.assert_array_equal(read, stored.get_fdata())
    for array in (field, field.astype(np.float64), field.astype(np.float16)):
        np.savez(tmp_path / "disp_0001_0002.npz", array)
        read = learn2reg.read_submission(tmp_path / "disp_0001_0002.npz")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array.astype(np.float32))


def test_mistakes_in_submissions(tmp_path):
    def message(name):
        with pytest.raises(UserError) as caught:
            learn2reg.read_submission(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in message("absent.nii.gz") and "not readable" in message("absent.npz")
    nifti.write(tmp_path / "scan.nii.gz", np.zeros((4, 4, 4)), np.eye(4))
    assert "4 x 4 x 4" in message("scan.nii.gz")
    nifti.write(tmp_path / "two.nii.gz", np.zeros((4, 4, 4, 2)), np.eye(4))
    assert "4 x 4 x 4 x 2" in message("two.nii.gz")
    np.savez(tmp_path / "two.npz", np.zeros(3), np.zeros(3))
    assert "2 arrays" in message("two.npz")
    (tmp_path / "text.npz").write_text("no archive")
    assert "not readable" in message("text.npz")


# Runs on files


def write_pair(root, split, number, *, turn=((0, 1, 2), (1, 1, 1)), moving_shift=0, labelled=True):
    """An MR and a CT numbered as the challenge's, a ball each, stored with axes swapped and flipped by `turn`."""
    axes, signs = turn
    for modality, image in (("0000", 500 * blob(0.0)), ("0001", 600 * blob(1.0) - 150)):
        affine = np.diag([*SPACING, 1.0])
        if modality == "0001":
            affine[:3, 3] = moving_shift * np.array(SPACING)
        order = np.zeros((4, 4))
        order[3, 3] = 1
        for stored, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
            order[axis, stored], order[axis, 3] = sign, 0 if sign > 0 else image.shape[axis] - 1
        labels = np.select([image > t for t in (0.45 * image.max(), 0.25 * image.max())], [1.0, 2.0])
        inside = blob(0.0) > 0.02
        for folder, data in (("images", image), ("labels", labels), ("masks", inside.astype(float))):
            if folder == "labels" and not labelled:
                continue
            data = data.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
            path = root / f"{folder}{split}" / f"AbdomenMRCT_{number:04d}_{modality}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), affine @ order), path)


def description(numbers, *, validation=(), test=()):
    def files(split, number):
        return [f"./images{split}/AbdomenMRCT_{number:04d}_000{modality}.nii.gz" for modality in (0, 1)]

    return {
        "training": {str(m): [{"image": files("Tr", number)[m]} for number in numbers] for m in (0, 1)},
        "registration_val": [dict(zip(("fixed", "moving"), files("Tr", n), strict=True)) for n in validation],
        "registration_test": [dict(zip(("fixed", "moving"), files("Ts", n), strict=True)) for n in test],
    }


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    """Two pairs to train on, one for validation, one hidden: in the test split and without labels."""
    root = tmp_path_factory.mktemp("challenge")
    for number in (1, 2, 6):
        write_pair(root, "Tr", number, turn=((0, 1, 2), (-1, -1, 1)))  # LPS
    write_pair(root, "Ts", 9, labelled=False)
    (root / "AbdomenMRCT_dataset.json").write_text(json.dumps(description((1, 2, 6), validation=(6,), test=(9,))))
    return root


@pytest.fixture(scope="module")
def submitted(commands, challenge, tmp_path_factory):
    """The folder of a tiny run on it, evaluated with --learn2reg, and what the command said."""
    workdir = tmp_path_factory.mktemp("submitted") / "run"
    values = TINY_CONFIG | {"data.source": "nifti", "data.root": challenge, "data.cases": 0, "train.steps": 2}
    values |= {"data.spacing": "20.0,20.0,16.0"}  # without brackets, as the error message spells it
    changes = [f"--config.{key}={value}" for key, value in values.items()]
    assert commands.run("main", "--config=configs/mrb.py", f"--workdir={workdir}", *changes).status == 0
    return workdir, commands.run("evaluate", f"--workdir={workdir}", "--pictures=0", "--learn2reg")


def test_the_command_scores_what_it_submits(surface_distance, challenge, submitted):
    workdir, result = submitted
    folder = workdir / "evaluation" / "learn2reg"
    assert result.status == 0 and str(folder) in result.out, result.err
    assert {path.name for path in folder.iterdir()} == {
        "summary.json",
        "disp_0006_0006.nii.gz",
        "disp_0009_0009.nii.gz",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"validation", "test"}
    scores = summary["validation"]["cases"]["AbdomenMRCT_0006"]
    assert scores["submission"] == "disp_0006_0006.nii.gz"

    def stored(name):
        return nibabel.load(challenge / name).get_fdata()

    field = nibabel.load(folder / "disp_0006_0006.nii.gz").get_fdata()
    assert np.abs(field).max() > 0
    maps = (stored(f"labelsTr/AbdomenMRCT_0006_000{modality}.nii.gz") for modality in (0, 1))
    mask = stored("masksTr/AbdomenMRCT_0006_0000.nii.gz")
    expected = reference_scores(field, *maps, mask, surface_distance)
    assert {name: scores[name]["mean"] for name in expected} == expected
    assert set(scores["DSC"]["detailed"]) == {"1", "2", "3", "4"} and scores["DSC"]["detailed"]["3"] is None
    assert summary["validation"]["aggregates"]["DSC"] == {"mean": expected["DSC"], "std": 0.0, "30": expected["DSC"]}
    assert set(summary["test"]["cases"]["AbdomenMRCT_0009"]) == {"submission", "LogJacDetStd", "num_foldings"}
    assert set(summary["test"]["aggregates"]) == {"LogJacDetStd", "num_foldings"}


def test_runs_that_learn2reg_cannot_score(challenge):
    config = data_config(challenge)
    for change in ({"source": "phantom"}, {"direction": "mr_to_ct"}):
        with pytest.raises(UserError, match=r"expected nifti and ct_to_mr"):
            learn2reg_files.open_pairs(ConfigDict(config | change), ["AbdomenMRCT_0006"])
    for change in ({"shape": (16, 16, 8)}, {"spacing": (10.0, 20.0, 16.0)}):
        with pytest.raises(UserError) as caught:
            learn2reg_files.open_pairs(ConfigDict(config | change), ["AbdomenMRCT_0006"])
        message = str(caught.value)
        assert "AbdomenMRCT_0006_0000.nii.gz" in message and "\n" not in message
        assert "data.shape=16,16,16 data.spacing=20,20,16" in message


def data_config(root):
    return data_settings(root, shape=SHAPE, spacing=SPACING)


@pytest.mark.parametrize(
    "turn",
    [*itertools.product([(0, 1, 2)], [(1, 1, 1), (-1, -1, 1), (1, 1, -1)]), ((2, 0, 1), (1, -1, -1))],
    ids=str,
)
@pytest.mark.parametrize("moving_shift", [0, 2])
def test_a_field_in_the_order_of_the_files_warps_their_labels_alike(tmp_path, turn, moving_shift):
    """Warped as stored, then turned to RAS+, the moving labels are those that our field gives on the working grid.

    A shift in the moving file's header takes its voxels away from the fixed file's; our grid follows the header.
    """
    for number in (1, 2):
        write_pair(tmp_path, "Tr", number, turn=turn, moving_shift=moving_shift)
    (tmp_path / "A_dataset.json").write_text(json.dumps(description((1, 2))))
    config = ConfigDict(data_config(tmp_path))
    pair = learn2reg_files.open_pairs(config, ["AbdomenMRCT_0001"])["AbdomenMRCT_0001"]
    case = cases.load_pair(pair, config)
    field = smooth_field(np.random.default_rng(1), SHAPE, size=1.5, dtype=np.float32)
    stored = learn2reg_files.to_file_order(field, case, pair)
    if turn == ((0, 1, 2), (1, 1, 1)) and not moving_shift:
        np.testing.assert_array_equal(stored, field)
    warped = learn2reg.warp_labels(nibabel.load(pair.moving.labels).get_fdata(), stored)
    nifti.write(tmp_path / "warped.nii.gz", warped.astype(np.float32), nibabel.load(pair.fixed.image).affine)
    expected = learn2reg.warp_labels(case.moving_labels, field)
    found = nifti.read_labels(tmp_path / "warped.nii.gz").data
    assert np.count_nonzero(expected) > 50
    kept = tuple(slice(4, -4) for _ in range(3)) if moving_shift else ...  # our grid cuts what the header moves off it
    np.testing.assert_array_equal(found[kept], expected[kept])


def test_only_scores_of_labels_need_surface_distance(monkeypatch, tmp_path):
    """Without it, a labelled pair ends in one line before its field is written, and one without labels is scored."""
    for number, labelled in ((1, True), (2, False)):
        write_pair(tmp_path, "Tr", number, labelled=labelled)
    (tmp_path / "A_dataset.json").write_text(json.dumps(description((1, 2))))
    config, names = ConfigDict(data_config(tmp_path)), ("AbdomenMRCT_0001", "AbdomenMRCT_0002")
    still, folder = np.zeros((*SHAPE, 3), np.float32), tmp_path / "submitted"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    labelled, bare = learn2reg_files.open_pairs(config, names).values()
    with pytest.raises(UserError, match=r"surface-distance.*EXTRAS=baselines"):
        learn2reg_files.submit(folder, still, cases.load_pair(labelled, config), labelled)
    assert not folder.exists()
    scores = learn2reg_files.submit(folder, still, cases.load_pair(bare, config), bare)
    assert scores["LogJacDetStd"]["mean"] == 0 and "HD95" not in scores


def test_pairs_without_numbers_are_scored_alone(surface_distance, tmp_path):
    write_pair(tmp_path, "Tr", 1)
    for name, modality in (("mr", "0000"), ("ct", "0001")):
        for folder, ending in (("images", ""), ("labels", "_label")):
            (tmp_path / f"{folder}Tr" / f"AbdomenMRCT_0001_{modality}.nii.gz").rename(
                tmp_path / f"{name}{ending}.nii.gz"
            )
    row = "mr.nii.gz,ct.nii.gz,mr_label.nii.gz,ct_label.nii.gz\n"
    (tmp_path / "pairs.csv").write_text(f"fixed,moving,fixed_labels,moving_labels\n{row}")
    config = ConfigDict(data_config(tmp_path))
    pair = learn2reg_files.open_pairs(config, ["mr"])["mr"]
    before = sorted(tmp_path.rglob("*"))
    still = np.zeros((*SHAPE, 3), np.float32)
    scores = learn2reg_files.submit(tmp_path, still, cases.load_pair(pair, config), pair)
    assert scores["submission"] is None and scores["LogJacDetStd"]["mean"] == 0 and 0 < scores["DSC"]["mean"] < 1
    assert sorted(tmp_path.rglob("*")) == before
