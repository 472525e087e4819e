"""Random headers, tables and configs: whatever a user gives, the answer is a value or one line, never a traceback.

The examples of `MUTATIONS` are headers that once ended in a traceback or in a wrong result.
"""

import json
import runpy
import struct
import warnings

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from conftest import REPOSITORY, TINY_CONFIG
from f3r_jax.common.errors import UserError
from f3r_jax.config import check_seed
from f3r_jax.data import itk_affine, landmarks, nifti, pairs, preprocess
from f3r_jax.data.datasets import open_dataset
from f3r_jax.train.step import check_settings

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPE = (6, 5, 4)
# (byte, struct format, values) of the fields of a NIfTI-1 header
MUTATIONS = {
    "vox_offset is infinite": (108, "<f", [np.inf]),
    "vox_offset is not a number": (108, "<f", [np.nan]),
    "vox_offset is negative": (108, "<f", [-1e30]),
    "vox_offset is in the header": (108, "<f", [0.0]),
    "sizes of terabytes": (40, "<8h", [3, 32767, 32767, 32767, 1, 1, 1, 1]),
    "sizes below zero": (40, "<8h", [3, -6, 5, 4, 1, 1, 1, 1]),
    "too many axes": (40, "<8h", [77, 6, 5, 4, 1, 1, 1, 1]),
    "no codes": (252, "<2h", [0, 0]),
    "odd codes": (252, "<2h", [-3, 1000]),
    "slope is not a number": (112, "<2f", [np.nan, np.inf]),
    "slope is huge": (112, "<2f", [3e38, 3e38]),
    "voxels of no size": (76, "<8f", [1, 0, 0, 0, 1, 1, 1, 1]),
    "voxels of infinite size": (76, "<8f", [1, np.inf, 1, 1, 1, 1, 1, 1]),
    "unknown type": (70, "<h", [77]),
    "units of nothing": (123, "<B", [255]),
    "quaternion is not a number": (256, "<3f", [np.nan, 0, 0]),
}


def valid():
    """The bytes of a small volume."""
    header = nibabel.Nifti1Image(np.arange(120, dtype=np.float32).reshape(SHAPE), np.diag([2, 2, 3, 1.0])).header
    header["vox_offset"] = 352
    return bytearray(header.binaryblock + bytes(4) + np.arange(120, dtype=np.float32).tobytes())


def only_user_errors(call, *args, **options):
    """The result; None if the answer was one line. Warnings are errors, because they would be printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return call(*args, **options)
        except UserError as error:
            assert "\n" not in str(error) and str(error)
            return None


def check_volume(path):
    image = only_user_errors(nifti.read, path)
    grid = only_user_errors(nifti.read_grid, path)
    only_user_errors(nifti.read_labels, path)
    only_user_errors(nifti.read_field, path)
    only_user_errors(nifti.notes_on, path)
    only_user_errors(nifti.read, path, unoriented="RAS")
    if image is not None:
        assert np.isfinite(image.data).all() and np.isfinite(image.affine).all() and image.data.dtype == np.float32
        assert grid.shape == image.shape
        only_user_errors(preprocess.recognise_modality, image)
        only_user_errors(preprocess.normalise, image, "mr", ct_window=(-160.0, 240.0), mr_percentiles=(1.0, 99.0))


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_that_once_failed(tmp_path, name):
    place, form, values = MUTATIONS[name]
    content = valid()
    struct.pack_into(form, content, place, *values)
    (tmp_path / "a.nii").write_bytes(content)
    check_volume(tmp_path / "a.nii")


def test_sizes_of_nifti_2_that_no_machine_holds(tmp_path):
    image = nibabel.Nifti2Image(np.zeros(SHAPE, np.float32), np.eye(4))
    content = bytearray(image.header.binaryblock + bytes(4))
    struct.pack_into("<8q", content, 16, 3, 2**62, 2**62, 2**62, 1, 1, 1, 1)
    struct.pack_into("<q", content, 168, 544)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(UserError, match=r"truncated|header"):
        nifti.read(tmp_path / "a.nii")


def test_intensities_that_float32_cannot_resolve(tmp_path):
    data = 1e9 + np.arange(120).reshape(SHAPE)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float64), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UserError, match="float32"):
        nifti.read(tmp_path / "a.nii")


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 900))
def test_any_header(tmp_path, changes, kept):
    content = valid()
    for place, value in changes:
        content[place] = value
    path = tmp_path / "a.nii"
    path.write_bytes(content[: len(content) - max(kept - 700, 0)])
    check_volume(path)


KNOWN = ("fixed", "moving", "mr.nii", "ct.nii", "split", "train", "name", "ct", "mr", "~", "a/b", "x", "y", "z", "nan")
words = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["", *KNOWN])


def _volumes(folder):
    for name in ("mr.nii", "ct.nii"):
        (folder / name).write_bytes(valid())


@FUZZ
@given(st.lists(st.lists(words, max_size=5), max_size=4))
@example([["", "fixed", "moving"], ["0", "mr.nii", "ct.nii"]])
@example([["fixed", "moving"], ["mr.nii", "ct.nii"]])
def test_any_table(tmp_path, rows):
    _volumes(tmp_path)
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    for call in (pairs.read_pairs, landmarks.read_landmarks):
        only_user_errors(call, table)
    table.write_bytes(table.read_bytes().replace(b"m", b"\xe9"))
    only_user_errors(pairs.read_pairs, table)


def test_an_index_column_of_pandas_is_named(tmp_path):
    _volumes(tmp_path)
    (tmp_path / "pairs.csv").write_text(",fixed,moving\n0,mr.nii,ct.nii\n")
    with pytest.raises(UserError, match=r"column 1 has no name.*index=False"):
        pairs.read_pairs(tmp_path)


values = st.recursive(
    st.none() | st.integers() | st.floats() | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["fixed", "moving", "image", "0", "1"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["training", "training_paired_images", "registration_val", "registration_test"]


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3) | values)
@example({"training_paired_images": [{"fixed": 1, "moving": 2}]})
@example({"training": {"0": [{"image": 5}], "1": [{"image": 6}]}})
def test_any_json(tmp_path, content):
    path = tmp_path / "a_dataset.json"
    path.write_text(json.dumps(content))
    only_user_errors(pairs.read_pairs, path)


@FUZZ
@given(st.text(max_size=60) | st.lists(st.floats(), min_size=12, max_size=13))
def test_any_matrix(tmp_path, content):
    path = tmp_path / "a.txt"
    if isinstance(content, list):
        content = "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n" + (
            f"Parameters: {' '.join(map(str, content))}\nFixedParameters: 0 0 0\n"
        )
    path.write_text(content, encoding="utf-8", errors="replace")
    only_user_errors(itk_affine.read_matrix, path)


numbers = st.integers(-3, 3) | st.sampled_from([2**31, 2**40, 10**20])
reals = st.floats() | st.sampled_from([0.0, -1.0])
SETTINGS = {
    "seed": numbers,
    "train.batch_size": numbers,
    "train.steps": numbers,
    "train.keep_checkpoints": numbers,
    "optim.learning_rate": reals,
    "loss.lam": reals,
    "loss.second_after": reals,
    "loss.mind": words,
    "data.shape": st.tuples(numbers, numbers, numbers),
    "data.spacing": st.tuples(reals, reals, reals),
    "data.ct_window": st.tuples(reals, reals),
    "data.cases": numbers,
    "data.unoriented": words,
    "data.source": words,
    "augment.blur": reals,
}


@FUZZ
@given(st.data())
def test_any_config(tmp_path, data):
    made: ConfigDict = runpy.run_path(str(REPOSITORY / "configs" / "mrb.py"))["get_config"]()
    made.update_from_flattened_dict(TINY_CONFIG | {"data.root": str(tmp_path)})
    for key in data.draw(st.lists(st.sampled_from(sorted(SETTINGS)), min_size=1, max_size=3, unique=True)):
        made.update_from_flattened_dict({key: data.draw(SETTINGS[key])})
    only_user_errors(check_seed, made)
    only_user_errors(check_settings, made)
    if only_user_errors(check_seed, made) is None:
        only_user_errors(open_dataset, made.data, seed=0)
