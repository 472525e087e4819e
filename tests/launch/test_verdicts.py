"""The script that counts right and wrong verdicts."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from conftest import REPOSITORY
from f3r_jax.data import nifti
from f3r_jax.data.phantom import generate

PROGRAM = f"""
import runpy
from f3r_jax.data.affine import search
search.COUNT = 2  # few placements are enough for one patient
runpy.run_path({str(REPOSITORY / "launch" / "verdicts.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_verdicts_of_a_pair_are_counted_and_kept(tmp_path):
    case = generate.make_case(3, 3, shape=(48, 40, 40), spacing=(7.0,) * 3, ct_phases=("venous",), mr_sequences=("t2",))
    for name in ("mr", "ct", "mr_labels", "ct_labels"):
        nifti.write(tmp_path / f"{name}.nii.gz", getattr(case, name), np.diag([7.0, 7.0, 7.0, 1.0]))
    table = "name,fixed,moving,fixed_labels,moving_labels\none,mr.nii.gz,ct.nii.gz,mr_labels.nii.gz,ct_labels.nii.gz\n"
    (tmp_path / "pairs.csv").write_text(table)
    output = tmp_path / "verdicts.csv"
    command = [sys.executable, "-c", PROGRAM, f"--pairs={tmp_path}", f"--output={output}"]
    environment = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "", done
    rows = {row["kind"]: row for row in csv.DictReader(output.open())}
    assert float(rows["as it is"]["dice"]) > 60 and rows["as it is"]["level"] == "ok"
    other = rows["mirrored left to right"]
    assert float(other["dice"]) < 30 and other["level"] == "check" and "mirrored" in other["reasons"]
    assert "| as it is | 50 and more | 1 | 0 | 0 |" in done.stdout
    stored = output.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and output.read_bytes() == stored
    assert "| as it is | 50 and more | 1 | 0 | 0 |" in again.stdout


def test_a_table_of_other_columns_is_not_appended_to(tmp_path):
    output = tmp_path / "verdicts.csv"
    output.write_text("pair,kind,dice\none,as it is,80.0\n")
    command = [sys.executable, "-c", PROGRAM, f"--pairs={tmp_path}", f"--output={output}"]
    environment = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{output}: columns ['pair'" in done.stderr
    assert output.read_text() == "pair,kind,dice\none,as it is,80.0\n"
