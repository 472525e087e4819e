"""`python -m f3r_jax.register` with labels, landmarks, masks and sequences that take part; and what is refused."""

import csv
import json

import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti, resample
from f3r_jax.data.affine import guided
from f3r_jax.data.grids import Grid
from f3r_jax.data.nifti import Image
from f3r_jax.data.phantom import generate
from f3r_jax.data.transforms import Transform
from f3r_jax.register import parts
from f3r_jax.register.guidance import UNGUIDED, Guidance, driving_labels, guidance_of, parts_of
from f3r_jax.register.guidance_report import separate
from f3r_jax.register.scans import Scan

SHAPE, SPACING = (48, 40, 40), 7.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
QUICK = ("--spacing=7", "--iterations=20", "--mind=mind_ssc_near", "--affine=none", "--checkpoint=none")
OFF = 60.0  # mm


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A phantom pair with labels, eight landmarks, a second MR, and masks of a spine and of a tumour."""
    folder = tmp_path_factory.mktemp("guided")
    case = generate.make_case(3, 3, shape=SHAPE, spacing=(SPACING,) * 3)
    second = generate.make_case(3, 3, shape=SHAPE, spacing=(SPACING,) * 3, mr_sequences=("out_of_phase",))
    spine, tumour = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    spine[22:26, 8:14, 4:34] = 1
    tumour[30:35, 20:25, 24:29] = 3
    few = np.zeros(SHAPE, np.uint8)
    few[3, 3, 3:6] = 1
    volumes = {
        "mr": case.mr,
        "mr2": second.mr,
        "ct": case.ct,
        "mr_labels": case.mr_labels,
        "ct_labels": case.ct_labels,
        "other_labels": (case.ct_labels > 0) * 9.0,
        "spine": spine,
        "tumour": tumour,
        "both": spine | tumour,
        "few": few,
    }
    for name, data in volumes.items():
        nifti.write(folder / f"{name}.nii.gz", data.astype(np.float32), AFFINE)
    voxels = np.random.default_rng(0).permutation(np.argwhere(case.mr_labels > 0))[:8]
    moved = voxels + case.ct_to_mr[tuple(voxels.T)]
    for name, points in (("mr", voxels), ("ct", moved), ("outside", voxels - 1000)):
        rows = "".join(",".join(f"{SPACING * value:.3f}" for value in point) + "\n" for point in points)
        (folder / f"{name}.csv").write_text("x,y,z\n" + rows)
    return folder


def arguments(files, output, *more, labels="ct_labels", points="ct"):
    sides = [f"--fixed={files / 'mr.nii.gz'}", f"--moving={files / 'ct.nii.gz'}", f"--output={output}", *QUICK]
    sides += [f"--fixed_labels={files / 'mr_labels.nii.gz'}", f"--moving_labels={files / labels}.nii.gz"]
    sides += [f"--fixed_landmarks={files / 'mr.csv'}", f"--moving_landmarks={files / points}.csv"]
    return [*sides, *more]


@pytest.fixture(scope="module")
def guided_result(commands, files, tmp_path_factory):
    output = tmp_path_factory.mktemp("result") / "out"
    options = (
        "--labels_weight=0.3",
        "--labels_drive=1,2",
        "--landmarks_weight=0.1",
        "--robust",
        f"--fixed_extra={files / 'mr2.nii.gz'}",
        f"--rigid_mask={files / 'spine.nii.gz'}",
        f"--preserve_mask={files / 'tumour.nii.gz'}",
        f"--fixed_exclude_mask={files / 'few.nii.gz'}",
    )
    result = commands.run("register", *arguments(files, output, *options))
    assert result.status == 0, result
    return result, json.loads((output / "summary.json").read_text()), output


def test_labels_that_drove_are_scored_apart(guided_result):
    result, summary, output = guided_result
    dice = {name: scores["dice"] for name, scores in summary["organs"].items()}
    assert summary["driving_labels"] == [1, 2]
    np.testing.assert_allclose(summary["mean_dice_driving"], (dice["liver"] + dice["spleen"]) / 2)
    np.testing.assert_allclose(summary["mean_dice"], (dice["right_kidney"] + dice["left_kidney"]) / 2)
    assert summary["mean_dice_driving"] > summary["before"]["mean_dice_driving"] + 5
    assert "labels that drove: 1, 2, mean Dice" in result.out
    assert "labels that drove" in (output / "report.html").read_text()


def test_landmarks_that_drove_are_left_out_one_by_one(guided_result):
    _, summary, _ = guided_result
    errors = summary["landmarks_left_out_mm"]
    assert len(errors["each"]) == 8 and summary["tre_mm"] < errors["mean"]
    np.testing.assert_allclose(np.mean(errors["each"]), errors["mean"])


def test_parts_keep_their_shape_and_volume(guided_result):
    _, summary, _ = guided_result
    rigid, preserve = summary["parts"]
    assert (rigid["kind"], rigid["label"], preserve["kind"], preserve["label"]) == ("rigid", 1, "preserve", 3)
    assert rigid["residual_mm_max"] < 0.01 and abs(rigid["jacobian_mean"] - 1) < 0.02
    assert abs(preserve["volume_ml_after"] / preserve["volume_ml_before"] - 1) < 0.01
    np.testing.assert_allclose(preserve["volume_ml_before"], 125 * 0.343)
    assert summary["folding_percent"] < 0.1


def test_the_settings_are_recorded_where_they_are_set(guided_result, commands, files, tmp_path):
    _, summary, _ = guided_result
    assert summary["settings"]["labels_weight"] == 0.3 and summary["settings"]["labels_drive"] == [1, 2]
    assert summary["settings"]["fixed_rigid"].endswith("spine.nii.gz")
    assert summary["settings"]["fixed_extra"] == [str(files / "mr2.nii.gz")]
    assert "moving_extra" not in summary["settings"] and "guidance" not in summary["settings"]
    assert UNGUIDED.changed() == {}


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ({"labels": "other_labels"}, ["--labels_weight=1"], ["share no value", "1, 2, 3, 4", "9 in", "other_labels"]),
        ({}, ["--labels_weight=1", "--labels_drive=1,7"], ["--labels_drive: label 7 is not in both maps"]),
        ({}, ["--labels_weight=1", "--labels_drive=liver"], ["--labels_drive is liver"]),
        ({}, ["--labels_drive=1"], ["--labels_drive without --labels_weight"]),
        ({}, ["--labels_weight=-1"], ["--labels_weight is -1, expected a number of 0 or more"]),
        ({}, ["--landmarks_weight=nan"], ["--landmarks_weight is nan"]),
        ({"points": "outside"}, ["--landmarks_weight=1"], ["outside.csv: landmark 1 at", "is outside", "ct.nii.gz"]),
        ({}, ["--rigid_mask={few}"], ["few.nii.gz: a part holds 3 voxels; expected connected parts of at least 27"]),
        (
            {},
            ["--rigid_mask={spine}", "--preserve_mask={both}"],
            ["both.nii.gz: overlaps", "spine.nii.gz in 720 voxels"],
        ),
        ({}, ["--fixed_extra={mr2},{mr}", "--moving_extra={ct}"], ["2 further sequences of the fixed scan and 1"]),
    ],
)
def test_bad_input_is_one_line_before_any_work(commands, files, tmp_path, given, options, words):
    options = [each.format(**{path.name.split(".")[0]: path for path in files.glob("*.nii.gz")}) for each in options]
    result = commands.run("register", *arguments(files, tmp_path / "out", *options, **given))
    assert result.status == 2 and result.err.count("\n") == 1 and result.err.startswith("error: "), result
    assert all(word in result.err for word in words), result.err
    assert not (tmp_path / "out").exists()


def test_a_table_has_columns_for_all_of_it(commands, files, tmp_path):
    row = {
        "name": "one",
        "fixed": "mr.nii.gz",
        "moving": "ct.nii.gz",
        "fixed_labels": "mr_labels.nii.gz",
        "moving_labels": "ct_labels.nii.gz",
        "labels_drive": "1 2",
        "fixed_landmarks": "mr.csv",
        "moving_landmarks": "ct.csv",
        "fixed_extra": "mr2.nii.gz",
        "rigid_mask": "spine.nii.gz",
        "preserve_mask": "tumour.nii.gz",
        "moving_exclude_mask": "few.nii.gz",
    }
    with (files / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    options = (f"--pairs={files / 'pairs.csv'}", f"--output={tmp_path}", *QUICK, "--labels_weight=0.3")
    result = commands.run("register", *options)
    assert result.status == 0, result
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["driving_labels"] == [1, 2] and len(summary["parts"]) == 2
    assert summary["settings"]["fixed_extra"] == [str(files / "mr2.nii.gz")]


def ball(radius=6.0, shape=(24, 22, 20)):
    place = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    return (np.linalg.norm(place, axis=-1) < radius).astype(np.uint8)


def stretched(shape=(24, 22, 20), scale=1.02):
    """A transform that stretches x about the centre of the grid and shifts y, with a matrix that shrinks z."""
    grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]), "grid")
    u = np.zeros((*shape, 3), np.float32)
    u[..., 0] = ((scale - 1) * (np.arange(shape[0]) - (shape[0] - 1) / 2))[:, None, None]
    u[..., 1] = 3.0
    return Transform(grid, np.diag([1.0, 1.0, 0.97, 1.0]), u)


def scan(**masks):
    image = Image(np.zeros((24, 22, 20), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), "scan")
    given = {kind: Image(data, image.affine, kind) for kind, data in masks.items()}
    return Scan(image, image, "mr", image.grid, **given)


def test_the_correction_makes_a_part_rigid_and_fades_out():
    before, fixed = stretched(), scan(rigid=ball())
    after = parts.corrected(before, fixed)
    (first,), (last,) = (parts.report(each, fixed) for each in (before, after))
    assert first["residual_mm_max"] > 0.2 and last["residual_mm_max"] < 1e-3
    assert abs(last["jacobian_min"] - 1) < 1e-3 and abs(last["volume_ml_after"] / last["volume_ml_before"] - 1) < 1e-3
    np.testing.assert_allclose(last["translation_mm"], first["translation_mm"], atol=1e-3)
    np.testing.assert_array_equal(after.displacement[0, 0, 0], before.displacement[0, 0, 0])


def test_the_correction_restores_a_volume():
    fixed = scan(preserve=ball())
    first, last = (parts.report(each, fixed)[0] for each in (stretched(), parts.corrected(stretched(), fixed)))
    assert abs(first["volume_ml_after"] / first["volume_ml_before"] - 1.02 * 0.97) < 1e-4
    assert abs(last["volume_ml_after"] / last["volume_ml_before"] - 1) < 1e-3


def test_parts_are_connected_pieces_of_each_label():
    data = np.zeros((20, 20, 20), np.uint8)
    data[1:4, 1:4, 1:4], data[1:4, 1:4, 4:8], data[10:14, 10:14, 10:14] = 1, 2, 1
    numbered = parts_of(Image(data, np.eye(4), "mask"))
    assert sorted(np.bincount(numbered.data.ravel())[1:]) == [27, 36, 64]
    data[18, 18, 18] = 1
    with pytest.raises(UserError, match="a part holds 1 voxels"):
        parts_of(Image(data, np.eye(4), "mask"))


def test_driving_labels_are_shared_ones():
    one, other = (Image(np.array([[[0, *values]]]), np.eye(4), "map") for values in ((1, 2, 3), (2, 3, 4)))
    assert driving_labels(one, other, Guidance(1.0)) == (2, 3)
    assert driving_labels(one, other, guidance_of(1.0, ["3"], 0.0, robust=False)) == (3,)
    assert driving_labels(one, None, UNGUIDED) == ()


def test_separate_leaves_nothing_of_labels_that_drove_in_the_mean():
    scores = {"organs": {"a": {"dice": 90.0}, "b": {"dice": 50.0}}, "mean_dice": 70.0}
    separate(scores, {"a": (1,), "b": (2,)}, (1,))
    assert (scores["mean_dice_driving"], scores["mean_dice"]) == (90.0, 50.0)


def test_landmarks_give_a_rigid_motion_that_an_outlier_hardly_changes():
    rng = np.random.default_rng(0)
    x, angle = rng.uniform(-100, 100, (8, 3)), 0.4
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = (30, -20, OFF)
    y = guided.moved(matrix, x)
    np.testing.assert_allclose(guided.from_landmarks(x, y), matrix, atol=1e-9)
    y[2, 0] += 30
    found = guided.from_landmarks(x, y)
    assert np.linalg.norm(guided.moved(found, x) - guided.moved(matrix, x), axis=1).max() < 1.0
    np.testing.assert_allclose(guided.from_landmarks(x[:2], x[:2] + 5), resample.translation((5, 5, 5)), atol=1e-9)


def test_a_landmark_that_contradicts_the_others_is_hardly_trusted():
    rng = np.random.default_rng(3)
    x = rng.uniform(-100, 100, (8, 3))
    y = 1.1 * x + rng.normal(0, 4, (8, 3))  # each organ moves a little differently
    trust = guided.trust_in(x, y)
    assert trust.min() > 0.5 and trust.max() <= 1
    y[2, 0] += 30
    trust = guided.trust_in(x, y)
    assert trust[2] < 0.15 and np.delete(trust, 2).min() > 0.5
    np.testing.assert_array_equal(guided.trust_in(x[:4], y[:4]), 1)


def test_landmarks_give_a_scale_if_they_are_enough():
    rng = np.random.default_rng(1)
    x, noise = rng.uniform(-100, 100, (8, 3)), rng.normal(0, 1.2, (8, 3))
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.0, -0.8, 0.0], [0.8, 0.0, 0.0], [0.0, 0.0, 0.8]]  # a quarter turn and a scale
    matrix[:3, 3] = (30, -20, OFF)
    y = guided.moved(matrix, x)
    np.testing.assert_allclose(guided.from_landmarks(x, y, scaled=True), matrix, atol=1e-9)
    away = [guided.moved(guided.from_landmarks(x, y, scaled=scaled), x) - y for scaled in (False, True)]
    assert np.linalg.norm(away[0], axis=1).mean() > 10
    y = y + noise
    y[2, 0] += 30
    found = guided.from_landmarks(x, y, scaled=True)
    assert np.linalg.norm(guided.moved(found, x) - guided.moved(matrix, x), axis=1).max() < 3
    unscaled = guided.from_landmarks(x[:4], y[:4], scaled=True)
    np.testing.assert_allclose(np.linalg.det(unscaled[:3, :3]), 1)
    same = guided.from_landmarks(x, x + noise, scaled=True)
    np.testing.assert_allclose(np.cbrt(np.linalg.det(same[:3, :3])), 1, atol=0.02)
    line = np.arange(8.0)[:, None] * [30.0, 0.0, 0.0]
    np.testing.assert_allclose(guided.from_landmarks(line, 2 * line, scaled=True)[:3, :3], np.eye(3))


def two_labels(planes, first, second):
    """A fixed and a moving map of two labels in the given planes, and the matrix between them."""
    data = np.zeros((40, 36, planes), np.uint8)
    data[8:24, 8:20, first], data[24:34, 20:30, second] = 1, 2
    fixed = Image(data, np.diag([3.0, 3, 3, 1]), "fixed")
    known = np.diag([1.1, 0.95, 1.0, 1.0])
    known[:3, 3] = (OFF, -20, 15)
    return fixed, Image(data, known @ fixed.affine, "moving"), known


def test_labels_that_a_field_of_view_cuts_off_give_the_same_scales():
    whole, moving, known = two_labels(40, slice(4, 36), slice(8, 30))
    upper = whole.affine @ resample.translation((0, 0, 18))
    fixed = Image(whole.data[:, :, 18:], upper, "the upper half")
    points = np.argwhere(fixed.data > 0) @ upper[:3, :3].T + upper[:3, 3]
    for pair, here, truth in (((fixed, moving), points, known), ((moving, fixed), None, np.linalg.inv(known))):
        here = guided.moved(known, points) if here is None else here
        found = guided.from_labels(*pair, (1, 2))
        assert np.linalg.norm(guided.moved(found, here) - guided.moved(truth, here), axis=1).mean() < 4
        assert guided.overlap(*pair, (1, 2), truth) > 0.93


def test_labels_give_a_shift_and_scales():
    fixed, moving, known = two_labels(32, slice(8, 20), slice(12, 24))
    found = guided.from_labels(fixed, moving, (1, 2))
    points = np.argwhere(fixed.data > 0) * 3.0
    assert np.linalg.norm(guided.moved(found, points) - guided.moved(known, points), axis=1).mean() < 1.5
    assert guided.overlap(fixed, moving, (1, 2), found) > 0.93 > 0.1 > guided.overlap(fixed, moving, (1, 2), np.eye(4))
