"""`python -m f3r_jax.register` and `apply` on a phantom pair whose files are stored in awkward ways."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from f3r_jax.common import result_folder
from f3r_jax.data import nifti, transforms
from f3r_jax.data.itk_affine import read_matrix
from f3r_jax.data.phantom import generate
from f3r_jax.evaluate import metrics

SHAPE, SPACING = (56, 44, 44), 6.0
FILES = {
    "warped.nii.gz",
    "displacement.nii.gz",
    "deformation.nii.gz",
    "inverse_displacement.nii.gz",
    "affine.txt",
    "warped_labels.nii.gz",
    "warped_landmarks.csv",
    "overlay.png",
    "checkerboard.png",
    "deformation.png",
    "jacobian.nii.gz",
    "report.html",
    "summary.json",
}
QUICK = ("--spacing=6", "--iterations=40", "--mind=mind_ssc_near", "--checkpoint=none")


def _stored(path, data, affine, *, order=(0, 1, 2), flip=()):
    """Writes a canonical volume with its axes in another order and direction; the same points in space."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(order):
        change[old, new] = -1 if old in flip else 1
        if old in flip:
            change[old, 3] = data.shape[old] - 1
    data = np.flip(data, flip).transpose(order)
    nifti.write(path, data, affine @ change)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with an oblique MR whose axes are turned, a flipped int16 CT in the same frame, labels and points."""
    folder = tmp_path_factory.mktemp("scans")
    protocol = {"ct_phases": ("venous",), "mr_sequences": ("t2",)}
    case = generate.make_case(3, 3, shape=SHAPE, spacing=(SPACING,) * 3, **protocol)
    angle = np.deg2rad(8)
    affine = np.eye(4)
    affine[:3, :3] = (
        np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * SPACING
    )
    affine[:3, 3] = (-150, 40, 700)
    for name, data in (("mr", case.mr), ("mr_labels", case.mr_labels)):
        _stored(folder / f"{name}.nii.gz", data, affine, order=(2, 0, 1), flip=(1,))
    for name, data in (("ct", case.ct.astype(np.int16)), ("ct_labels", case.ct_labels)):
        _stored(folder / f"{name}.nii.gz", data, affine, flip=(0, 2))
    voxels = np.array([[28, 22, 22], [20, 17, 28], [35, 25, 17]])
    moved = voxels + case.ct_to_mr[tuple(voxels.T)]
    for name, points in (("mr", voxels), ("ct", moved)):
        rows = points @ affine[:3, :3].T + affine[:3, 3]
        (folder / f"{name}.csv").write_text("x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in rows))
    return folder


def _arguments(scans, output, *more):
    sides = {"fixed": "mr", "moving": "ct"}
    given = [f"--{side}={scans / name}.nii.gz" for side, name in sides.items()]
    given += [f"--{side}_labels={scans / name}_labels.nii.gz" for side, name in sides.items()]
    given += [f"--{side}_landmarks={scans / name}.csv" for side, name in sides.items()]
    return [*given, f"--output={output}", *QUICK, *more]


@pytest.fixture(scope="module")
def registered(commands, scans, tmp_path_factory):
    """The folder and the result of a registration without a network."""
    output = tmp_path_factory.mktemp("registered") / "out"
    return output, commands.run("register", *_arguments(scans, output))


def _summary(output):
    return json.loads((output / "summary.json").read_text())


def _assert_one_line(result, *words):
    assert result.status == 2 and result.err.count("\n") == 1 and result.err.startswith("error: "), result
    assert all(word in result.err for word in words), result.err


def test_a_registration_leaves_its_files_and_says_what_it_did(registered):
    output, result = registered
    assert result.status == 0 and result.err == "", result
    assert {path.name for path in output.iterdir()} == FILES
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    for words in ("MR (by its intensities", "CT (by its intensities", "affine step", "refining", "mean", "report.html"):
        assert words in result.out, result.out


def test_masks_that_do_not_overlap_are_shown_as_a_dash(commands, scans, tmp_path):
    half = np.zeros(SHAPE, np.uint8)
    half[:20] = 1
    affine = nifti.read(scans / "mr.nii.gz").affine
    nifti.write(tmp_path / "left.nii.gz", half, affine)
    nifti.write(tmp_path / "right.nii.gz", half[::-1], affine)
    masks = [f"--fixed_mask={tmp_path / 'left.nii.gz'}", f"--moving_mask={tmp_path / 'right.nii.gz'}"]
    result = commands.run(
        "register",
        *(f"--{side}={scans / name}.nii.gz" for side, name in (("fixed", "mr"), ("moving", "ct"))),
        *(*masks, f"--output={tmp_path / 'out'}", "--affine=none", "--spacing=12", "--iterations=5"),
    )
    assert result.status == 0 and result.err == "", result
    assert "instance optimisation: similarity - -> -" in result.out
    assert set(_summary(tmp_path / "out")["similarity"].values()) == {None}


def test_it_registers(registered):
    summary = _summary(registered[0])
    assert list(summary["organs"]) == ["liver", "spleen", "right_kidney", "left_kidney"]
    assert summary["mean_dice"] > summary["before"]["mean_dice"] + 8
    assert summary["tre_mm"] < summary["before"]["tre_mm"]
    assert summary["folding_percent"] < 0.5
    assert summary["similarity"]["refined"] < summary["similarity"]["affine"] <= summary["similarity"]["initial"] + 1e-3
    assert summary["seconds"]["total"] > 0 and summary["settings"]["spacing"] == SPACING


def test_the_result_lies_on_the_fixed_file(registered, scans):
    fixed = nifti.read_stored_grid(scans / "mr.nii.gz")
    for name in ("warped.nii.gz", "warped_labels.nii.gz"):
        grid = nifti.read_stored_grid(registered[0] / name)
        assert grid.shape == fixed.shape
        np.testing.assert_allclose(grid.affine, fixed.affine, atol=1e-4)
    field, grid = nifti.read_field(registered[0] / "displacement.nii.gz")
    assert grid.shape == fixed.shape
    warped = transforms.warp_image(nifti.read(scans / "ct.nii.gz"), field, grid, outside=-1000.0)
    canonical = nifti.read(registered[0] / "warped.nii.gz")
    again = transforms.warp_image(canonical, np.zeros_like(field), grid)
    assert np.abs(warped - again)[2:-2, 2:-2, 2:-2].max() < 1.0  # HU


def test_the_scores_are_those_of_the_files(registered, scans):
    truth, found = (
        nifti.read_labels(path).data for path in (scans / "mr_labels.nii.gz", registered[0] / "warped_labels.nii.gz")
    )
    summary = _summary(registered[0])
    for value, organ in enumerate(summary["organs"], 1):
        np.testing.assert_allclose(summary["organs"][organ]["dice"], metrics.dice(truth == value, found == value))


def test_the_parts_make_the_whole(registered):
    """deformation.nii.gz, then affine.txt."""
    whole, grid = nifti.read_field(registered[0] / "displacement.nii.gz")
    part, _ = nifti.read_field(registered[0] / "deformation.nii.gz")
    matrix = read_matrix(registered[0] / "affine.txt")
    points = (
        np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) @ grid.affine[:3, :3].T
        + grid.affine[:3, 3]
    )
    np.testing.assert_allclose(points + whole, (points + part) @ matrix[:3, :3].T + matrix[:3, 3], atol=2e-3)


def _points(path):
    with path.open() as file:
        return np.array([[float(row[axis]) for axis in "xyz"] for row in csv.DictReader(file)])


def test_apply_repeats_what_register_wrote(commands, registered, scans, tmp_path):
    output = registered[0]
    for kind, given, expected in (
        ("image", "ct.nii.gz", "warped.nii.gz"),
        ("labels", "ct_labels.nii.gz", "warped_labels.nii.gz"),
    ):
        result = commands.run(
            "apply", f"--transform={output}", f"--{kind}={scans / given}", f"--output={tmp_path / given}"
        )
        assert result.status == 0 and result.err == "", result
        one, other = (nifti.read(path) for path in (tmp_path / given, output / expected))
        np.testing.assert_allclose(one.data, other.data, atol=0.55)  # the CT of integers stays one of integers
    there, back = tmp_path / "there.csv", tmp_path / "back.csv"
    assert (
        commands.run("apply", f"--transform={output}", f"--points={scans / 'ct.csv'}", f"--output={there}").status == 0
    )
    np.testing.assert_allclose(_points(there), _points(output / "warped_landmarks.csv"), atol=0.5)
    assert (
        commands.run("apply", f"--transform={output}", "--inverse", f"--points={there}", f"--output={back}").status == 0
    )
    np.testing.assert_allclose(_points(back), _points(scans / "ct.csv"), atol=0.002)


def test_apply_carries_the_fixed_scan_to_the_moving_one(commands, registered, scans, tmp_path):
    made = tmp_path / "labels.nii.gz"
    given = [f"--transform={registered[0]}", "--inverse", f"--reference={scans / 'ct.nii.gz'}", f"--output={made}"]
    assert commands.run("apply", *given, f"--labels={scans / 'mr_labels.nii.gz'}").status == 0
    truth, found = (nifti.read_labels(path) for path in (scans / "ct_labels.nii.gz", made))
    assert metrics.dice(truth.data == 1, found.data == 1) > _summary(registered[0])["before"]["organs"]["liver"]["dice"]
    assert nifti.read_stored_grid(made).shape == nifti.read_stored_grid(scans / "ct.nii.gz").shape


def test_another_result_is_not_overwritten_unasked(commands, registered, scans, tmp_path):
    output = shutil.copytree(registered[0], tmp_path / "out")
    (output / "notes.txt").write_text("precious")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    _assert_one_line(commands.run("register", *_arguments(scans, output)), str(output), "--overwrite")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    again = commands.run("register", *_arguments(scans, output, "--overwrite", "--norefine"))
    assert again.status == 0, again
    assert (output / "notes.txt").read_text() == "precious" and _summary(output)["settings"]["refine"] is False


def test_a_killed_registration_leaves_the_old_result(commands, registered, scans, tmp_path):
    output = shutil.copytree(registered[0], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def half_written():
        return any(output.glob(".writing-*/new/warped.nii.gz"))

    assert commands.run("register", *_arguments(scans, output, "--overwrite"), kill_when=half_written).status == -9
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == before
    again = commands.run("register", *_arguments(scans, output, "--overwrite", "--norefine"))
    assert again.status == 0 and {path.name for path in output.iterdir()} == FILES, again


@pytest.fixture(scope="module")
def trained(commands, tmp_path_factory, phantoms):
    """The folder of a tiny run on voxels of 20 x 20 x 16 mm."""
    from conftest import TINY_CONFIG

    workdir = tmp_path_factory.mktemp("trained") / "run"
    values = TINY_CONFIG | {"data.root": phantoms}
    changes = [f"--config.{key}={value}" for key, value in values.items()]
    assert commands.run("main", "--config=configs/mrb.py", f"--workdir={workdir}", *changes).status == 0
    return workdir


def test_a_network_alone(commands, scans, trained, tmp_path):
    given = ["--affine=none", "--norefine", f"--checkpoint={trained}", "--learn2reg"]
    result = commands.run("register", *_arguments(scans, tmp_path / "out", *given))
    if "differs" in result.err:  # Learn2Reg's field wants both scans on one grid
        _assert_one_line(result, "ct.nii.gz")
        result = commands.run("register", *_arguments(scans, tmp_path / "out", *given[:-1]))
    assert result.status == 0, result
    summary = _summary(tmp_path / "out")
    assert summary["similarity"]["network"] > 0 and "refined" not in summary["similarity"]
    assert summary["mean_dice"] != summary["before"]["mean_dice"]


def test_a_network_of_the_other_direction_is_refused(commands, scans, trained, tmp_path):
    given = [f"--fixed={scans / 'ct.nii.gz'}", f"--moving={scans / 'mr.nii.gz'}", f"--checkpoint={trained}"]
    result = commands.run("register", *QUICK, *given, f"--output={tmp_path / 'out'}", "--affine=none")
    _assert_one_line(result, str(trained), "CT as the moving scan", "swap")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--fixed=no.nii.gz"], ["no.nii.gz", "no such file"]),
        (["--affine=no.txt"], ["no.txt", "no such file"]),
        (["--checkpoint=no/run"], ["no/run", "no such folder"]),
        (["--spacing=0"], ["--spacing"]),
        (["--spacing=inf"], ["--spacing is inf"]),
        (["--spacing=nan"], ["--spacing is nan"]),
        (["--memory=0"], ["--memory is 0.0", "GB above 0"]),
        (["--spacing=0.001"], ["--spacing=0.001", "GB"]),
        (["--lam=nan"], ["--lam is nan"]),
        (["--format=tif"], ["--format is tif", "expected some of own, nrrd"]),
        (["--unoriented=up"], ["--unoriented is 'up'", "RAS"]),
        (["--moving_modality=mr"], ["ct.nii.gz", "stated to be an MR", "--nocheck_modality"]),
        (["--fixed_landmarks=FEW"], ["1 landmarks, but 3 in", "ct.csv"]),
        (["--fixed=FOLDER"], ["a folder without DICOM images"]),
        (["--fixed=" + "x" * 300], ["the name is too long"]),
        (["--iterations=0"], ["iterations"]),
        (["--iterations=7"], ["--iterations", "7"]),
        (["--organs=liver"], ["--organs", "liver"]),
        (["--organs=heart=9"], ["heart", "9", "1, 2, 3, 4"]),
        (["--ct_window=3"], ["--ct_window"]),
        (["--mind=ngf"], ["mind"]),
        (["--fixed_modality=pet"], ["fixed_modality"]),
        (["--affine=none", "--norefine"], ["--affine=none", "--checkpoint"]),
        (["--colour=red"], ["colour"]),
        (["more"], ["more"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(commands, scans, tmp_path, given, words):
    (scans / "few.csv").write_text("x,y,z\n1,2,3\n")
    given = [text.replace("FEW", str(scans / "few.csv")).replace("FOLDER", str(scans)) for text in given]
    _assert_one_line(commands.run("register", *_arguments(scans, tmp_path / "out", *given)), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_was_whole_when_its_run_was_killed_is_moved_into_place(commands, registered, scans, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(registered[0], output / ".complete")
    (output / "warped.nii.gz").write_bytes(b"an older one")
    refused = commands.run(
        "apply", f"--transform={output}", f"--image={scans / 'ct.nii.gz'}", f"--output={tmp_path / 'x.nii.gz'}"
    )
    _assert_one_line(refused, "complete")
    again = commands.run("register", *_arguments(scans, output))
    assert again.status == 0 and again.err == "" and "it is in place now" in again.out, again
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in registered[0].iterdir()
    }


def test_the_folder_of_another_process_is_not_touched(commands, scans, tmp_path):
    with result_folder.reserved(tmp_path / "out"):
        _assert_one_line(commands.run("register", *_arguments(scans, tmp_path / "out")), "another process")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["--transform"]),
        (["--transform=OUT", "--output=x.nii.gz"], ["--image", "--labels"]),
        (["--transform=no", "--image=CT", "--output=WORK/x.nii.gz"], ["no", "no such"]),
        (["--transform=WORK", "--image=CT", "--output=WORK/x.nii.gz"], ["displacement.nii.gz"]),
        (["--transform=OUT", "--image=CT", "--output=WORK/x.png"], ["x.png", ".nii"]),
        (["--transform=OUT", "--image=CT", "--output=OUT/warped.nii.gz"], ["warped.nii.gz", "--overwrite"]),
        (["--transform=OUT", "--image=CT", "--output=WORK/none/x.nii.gz"], ["none", "no such folder"]),
        (["--transform=OUT/displacement.nii.gz", "--inverse", "--image=CT", "--output=WORK/x.nii.gz"], ["one way"]),
        (["--transform=CT", "--image=CT", "--output=WORK/x.nii.gz"], ["ct.nii.gz", "field"]),
    ],
)
def test_a_mistake_with_apply_is_one_line(commands, registered, scans, tmp_path, given, words):
    names = {"OUT": str(registered[0]), "CT": str(scans / "ct.nii.gz"), "WORK": str(tmp_path)}
    for short, name in names.items():
        given = [text.replace(short, name) for text in given]
    _assert_one_line(commands.run("apply", *given), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_real_pair_without_a_checkpoint(commands, tmp_path):
    """Two people's scans in unrelated frames: as good as translation and scaling fitted on the labels themselves."""
    if "F3R_REAL_PAIR" not in os.environ:
        pytest.skip("F3R_REAL_PAIR names no folder with ct.nii.gz, mr.nii.gz and their label maps")
    folder = Path(os.environ["F3R_REAL_PAIR"])
    given = [f"--fixed={folder / 'mr.nii.gz'}", f"--moving={folder / 'ct.nii.gz'}", f"--output={tmp_path / 'out'}"]
    given += [f"--fixed_labels={folder / 'mr_label.nii.gz'}", f"--moving_labels={folder / 'ct_label.nii.gz'}"]
    assert commands.run("register", *given).status == 0
    summary = _summary(tmp_path / "out")
    assert summary["mean_dice"] >= 61 and summary["folding_percent"] <= 0.5
