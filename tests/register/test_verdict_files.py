"""Verdict, strict exit status, uncertainty and Jacobian volume of the command `register`."""

import csv
import json

import numpy as np
import pytest

from f3r_jax.data import itk_affine, nifti, resample
from f3r_jax.data.phantom import generate

SHAPE, SPACING = (48, 40, 40), 7.0
QUICK = ("--spacing=7", "--iterations=20", "--mind=mind_ssc_near", "--affine=none", "--checkpoint=none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scans of one patient in one frame, and a matrix that takes the moving scan out of view."""
    made = tmp_path_factory.mktemp("verdict")
    case = generate.make_case(3, 3, shape=SHAPE, spacing=(SPACING,) * 3, ct_phases=("venous",), mr_sequences=("t2",))
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    for name, data in (("mr", case.mr), ("ct", case.ct)):
        nifti.write(made / f"{name}.nii.gz", data, affine)
    itk_affine.write_matrix(made / "away.txt", resample.translation((0.0, 0.0, 225.0)))
    (made / "pairs.csv").write_text("name,fixed,moving\none,mr.nii.gz,ct.nii.gz\n")
    return made


def _register(commands, folder, output, *more):
    scans = (f"--fixed={folder / 'mr.nii.gz'}", f"--moving={folder / 'ct.nii.gz'}")
    return commands.run("register", *scans, f"--output={output}", *QUICK, *more)


def _summary(output):
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def result(commands, folder, tmp_path_factory):
    """The folder and the result of a registration with its uncertainty."""
    output = tmp_path_factory.mktemp("out") / "out"
    return output, _register(commands, folder, output, "--uncertainty", "--strict")


def test_a_good_result_is_ok(result):
    output, done = result
    assert done.status == 0 and done.err == "", done
    assert "\nverdict: ok\n" in done.out
    verdict = _summary(output)["verdict"]
    assert verdict["level"] == "ok" and verdict["reasons"] == []
    assert verdict["evidence"]["cycle_mm"] < 20 and verdict["evidence"]["likeness"] > 40
    assert "Verdict: ok" in (output / "report.html").read_text()


def test_the_uncertainty_is_a_volume_in_mm_and_a_figure(result, folder):
    output, done = result
    volume, fixed = nifti.read(output / "uncertainty.nii.gz"), nifti.read(folder / "mr.nii.gz")
    assert volume.data.shape == SHAPE and np.allclose(volume.affine, fixed.affine)
    inside = volume.data[fixed.data > 0.2 * fixed.data.max()]
    assert inside.min() >= 0 and 0.1 < np.median(inside) < 20
    known = _summary(output)["uncertainty_mm"]
    assert 0 < known["median"] < known["p95"]
    assert "uncertainty: " in done.out and (output / "uncertainty.png").stat().st_size > 10_000
    assert "spread of the displacement" in (output / "report.html").read_text()
    assert _summary(output)["settings"]["uncertainty"] is True


def test_the_jacobian_is_the_local_change_of_volume(result):
    output, _ = result
    volume, field = nifti.read(output / "jacobian.nii.gz").data, nifti.read_field(output / "deformation.nii.gz")[0]
    u = field / SPACING  # mm, RAS+, on axes along the frame
    jacobian = np.stack([np.gradient(u[..., c], axis=(0, 1, 2)) for c in range(3)])
    expected = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)) + np.eye(3))
    inner = (slice(6, -6),) * 3
    assert np.corrcoef(volume[inner].ravel(), expected[inner].ravel())[0, 1] > 0.97
    np.testing.assert_allclose(volume[inner], expected[inner], atol=0.25)
    assert _summary(output)["nondiffeomorphic_percent"] >= 0


def test_a_wrong_place_has_failed(commands, folder, tmp_path):
    wrong = ("--norefine", f"--affine={folder / 'away.txt'}")
    plain = _register(commands, folder, tmp_path / "plain", *wrong)
    assert plain.status == 0, plain
    strict = _register(commands, folder, tmp_path / "strict", *wrong, "--strict")
    assert strict.status == 4 and strict.err == "", strict
    verdict = _summary(tmp_path / "strict")["verdict"]
    assert verdict["level"] == "failed" and verdict["reasons"]
    assert f"verdict: failed: {verdict['reasons'][0]}" in strict.out
    assert "do not use this result" in (tmp_path / "strict" / "report.html").read_text()


def test_the_table_of_many_pairs_has_verdicts(commands, folder, tmp_path):
    given = (f"--pairs={folder / 'pairs.csv'}", f"--output={tmp_path / 'all'}", "--strict", "--spacing=7")
    done = commands.run("register", *given, "--norefine", f"--affine={folder / 'away.txt'}")
    assert done.status == 4, done
    (row,) = csv.DictReader((tmp_path / "all" / "summary.csv").open())
    assert (row["status"], row["verdict"]) == ("done", "failed")
    assert row["reason"] == "; ".join(_summary(tmp_path / "all" / "one")["verdict"]["reasons"])
    assert "verdicts: 0 ok, 0 check, 1 failed" in done.out
    again = commands.run("register", *given, "--norefine", f"--affine={folder / 'away.txt'}")
    assert again.status == 4 and "1 finished before" in again.out


def test_uncertainty_needs_instance_optimisation(commands, folder, tmp_path):
    done = _register(commands, folder, tmp_path / "no", "--uncertainty", "--norefine", "--affine=rigid")
    assert done.status == 2 and done.err.startswith("error: --uncertainty with --norefine")
    assert not (tmp_path / "no").exists()
