"""`f3r-register --demo`: its scans, its mistakes, and what it writes."""

import json

import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import preprocess, volumes
from f3r_jax.evaluate import metrics
from f3r_jax.register import demo


def test_the_pair_is_misaligned_and_its_modalities_are_detected(tmp_path):
    fixed, moving, output = demo.prepare(tmp_path / "demo", overwrite=False)
    assert output == tmp_path / "demo" / "result" and not output.exists()
    images = [volumes.read(files.path) for files in (fixed, moving)]
    assert [preprocess.recognise_modality(image) for image in images] == [fixed.modality, moving.modality]
    labels = [volumes.read_labels(files.labels).data for files in (fixed, moving)]
    scores = metrics.organ_scores(*labels, organs={"liver": (1,)}, spacing=np.full(3, demo.SPACING))
    assert scores["liver"]["dice"] < 85  # %
    with pytest.raises(UserError, match=r"holds mr.nii.gz, expected a new folder as --output, or --overwrite"):
        demo.prepare(tmp_path / "demo", overwrite=False)
    demo.prepare(tmp_path / "demo", overwrite=True)


def test_the_command_registers_it_and_writes_other_formats(commands, tmp_path, SimpleITK):
    quick = ("--affine=none", "--iterations=5", "--spacing=10")
    done = commands.run("register", "--demo", *quick, "--format=own,mha,h5", cwd=tmp_path)
    assert done.status == 0 and "phantom pair: f3r_demo/scans" in done.out, done
    result = tmp_path / "f3r_demo" / "result"
    assert "network: similarity" in done.out  # the one in the package, by default
    assert json.loads((result / "summary.json").read_text())["settings"]["checkpoint"] == "builtin"
    assert {"summary.json", "warped.mha", "warped_labels.mha", "transform.h5"} <= {
        path.name for path in result.iterdir()
    }
    given = f"--transform={result}/transform.h5", f"--image={tmp_path}/f3r_demo/scans/ct.nii.gz"
    reference, output = f"--reference={tmp_path}/f3r_demo/scans/mr.nii.gz", f"--output={tmp_path}/again.nii.gz"
    again = commands.run("apply", *given, reference, output)
    assert again.status == 0, again
    warped, other = (volumes.read(path).data for path in (result / "warped.mha", tmp_path / "again.nii.gz"))
    np.testing.assert_allclose(other, warped, atol=0.55)  # the CT is one of integers
    again = commands.run("register", "--demo", *quick, cwd=tmp_path)
    assert again.status == 2 and "holds another result" in again.err
    mixed = commands.run("register", "--demo", "--fixed=a.nii.gz", cwd=tmp_path)
    assert mixed.status == 2 and "--fixed with --demo" in mixed.err
