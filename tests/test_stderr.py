"""A successful run prints nothing to standard error, whatever the cases are called and whatever labels they have.

Warnings of NumPy, SciPy and Matplotlib are errors here.
"""

import numpy as np
import pytest

from conftest import blob
from f3r_jax.data import nifti

STRICT = {"PYTHONWARNINGS": "error"}
NAMES = ("one", "\u809d\u81df $x$", "\u0643\u0628\u062f", "_hidden", "x" * 100)
AFFINE = np.diag([20.0, 20.0, 16.0, 1.0])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Five pairs, two to train with and three to test: without labels, with an organ of one map only, and with all."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = ["name,fixed,moving,fixed_labels,moving_labels,split"]
    for index, name in enumerate(NAMES):
        fixed, moving = blob(0.0), blob(0.5 * index)
        nifti.write(folder / f"mr_{index}.nii.gz", 500 * fixed, AFFINE)
        nifti.write(folder / f"ct_{index}.nii.gz", 1900 * moving - 1000, AFFINE)
        with_labels = index > 2
        if with_labels:
            nifti.write(folder / f"mr_labels_{index}.nii.gz", (fixed > 0.3).astype(np.uint8), AFFINE)
            organ = 2 if index == 3 else 1  # 2: the organ of each map is lost in the other
            nifti.write(folder / f"ct_labels_{index}.nii.gz", (organ * (moving > 0.3)).astype(np.uint8), AFFINE)
        labels = f"mr_labels_{index}.nii.gz,ct_labels_{index}.nii.gz" if with_labels else ","
        rows.append(f"{name},mr_{index}.nii.gz,ct_{index}.nii.gz,{labels},{'test' if index > 1 else 'train'}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def quiet(commands):
    """A function that runs a command, which must succeed and print nothing to standard error."""

    def run(*arguments):
        result = commands.run(*arguments, env=STRICT)
        assert result.status == 0 and result.err == "", result
        return result

    return run


def test_main_evaluate_and_report(quiet, arguments, pairs, finished, tmp_path):
    changes = {"data.source": "nifti", "data.root": pairs, "data.cases": 0, "train.steps": 2, "train.validate_every": 1}
    quiet("main", *arguments(changes))
    run = tmp_path / "run"
    assert (run / "evaluation" / f"{NAMES[2]}_overlay.png").exists()
    quiet("evaluate", f"--workdir={run}", "--pictures=3")
    quiet("report", finished[0], f"--output={tmp_path / 'report'}")  # of cases that have labels


def test_register_and_apply(quiet, pairs, tmp_path):
    given = ["--affine=none", "--spacing=20", "--iterations=5", "--mind=mind_ssc_near", "--checkpoint=none"]
    one, other = (
        [f"--{side}={pairs / kind}_{index}.nii.gz" for side, kind in (("fixed", "mr"), ("moving", "ct"))]
        for index in (1, 3)
    )
    quiet("register", *one, f"--output={tmp_path / 'plain'}", *given)
    labels = [f"--{side}_labels={pairs / kind}_labels_3.nii.gz" for side, kind in (("fixed", "mr"), ("moving", "ct"))]
    quiet("register", *other, *labels, f"--output={tmp_path / 'labels'}", *given)
    image = pairs / "ct_1.nii.gz"
    quiet("apply", f"--transform={tmp_path / 'plain'}", f"--image={image}", f"--output={tmp_path / 'warped.nii.gz'}")
    quiet("register", f"--pairs={pairs}", f"--output={tmp_path / 'pairs'}", *given)
