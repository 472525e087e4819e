"""Matrices in the files of ITK and ANTs: by hand, there and back, and against SimpleITK on points."""

import numpy as np
import pytest
import scipy.io

from f3r_jax.common.errors import UserError
from f3r_jax.data.itk_affine import read_matrix, write_matrix

MATRIX = np.array([[0.9, -0.3, 0.1, 12.5], [0.25, 1.1, -0.2, -7.0], [0.05, 0.15, 0.95, 33.0], [0.0, 0.0, 0.0, 1.0]])
POINTS = np.random.default_rng(0).uniform(-200, 200, (20, 3))
FLIP = np.array([-1.0, -1.0, 1.0])


def in_lps(matrix, points):
    """The matrix of RAS points applied to LPS ones."""
    return ((points * FLIP) @ matrix[:3, :3].T + matrix[:3, 3]) * FLIP


def text(path, kind, parameters, fixed="0 0 0"):
    lines = ("#Insight Transform File V1.0", "#Transform 0", f"Transform: {kind}", f"Parameters: {parameters}")
    path.write_text("\n".join([*lines, f"FixedParameters: {fixed}"]) + "\n")
    return path


def message(path):
    with pytest.raises(UserError) as caught:
        read_matrix(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["affine.txt", "affine.tfm"])
def test_there_and_back(tmp_path, name):
    write_matrix(tmp_path / name, MATRIX)
    np.testing.assert_allclose(read_matrix(tmp_path / name), MATRIX, rtol=0, atol=1e-14)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_translation_to_the_right_is_negative_in_the_file(tmp_path):
    matrix = np.eye(4)
    matrix[:3, 3] = (1, 2, 3)
    write_matrix(tmp_path / "shift.txt", matrix)
    assert "Parameters: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0 -1.0 -2.0 3.0" in (tmp_path / "shift.txt").read_text()
    found = read_matrix(text(tmp_path / "other.txt", "TranslationTransform_double_3_3", "-1 -2 3", ""))
    np.testing.assert_array_equal(found, matrix)


def test_the_centre_stays_where_it_is(tmp_path):
    """A turn by 90 degrees about an axis through (10, 20, 30), LPS."""
    path = text(tmp_path / "turn.txt", "MatrixOffsetTransformBase_double_3_3", "0 -1 0 1 0 0 0 0 1 0 0 0", "10 20 30")
    np.testing.assert_allclose(in_lps(read_matrix(path), np.array([[10.0, 20, 30], [11, 20, 30]])), [
        [10, 20, 30],
        [10, 21, 30],
    ])  # fmt: skip


def simpleitk_transforms(sitk):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(MATRIX[:3, :3].ravel())
    euler, zyx, versor = sitk.Euler3DTransform(), sitk.Euler3DTransform(), sitk.VersorRigid3DTransform()
    for rigid in (euler, zyx):
        rigid.SetRotation(0.3, -0.5, 0.7)
    zyx.SetComputeZYX(True)
    versor.SetRotation((1.0, 2.0, -0.5), 0.8)
    for transform in (affine, euler, zyx, versor):
        transform.SetCenter((10.0, -20.0, 35.0))
        transform.SetTranslation((1.5, -2.5, 3.5))
    return {
        "affine": affine,
        "euler": euler,
        "zyx": zyx,
        "versor": versor,
        "shift": sitk.TranslationTransform(3, (4.0, 5.0, -6.0)),
    }


@pytest.mark.parametrize("name", ["affine", "euler", "zyx", "versor", "shift"])
def test_what_simpleitk_writes_takes_points_where_it_does(sitk, tmp_path, name):
    transform = simpleitk_transforms(sitk)[name]
    sitk.WriteTransform(transform, str(tmp_path / "theirs.tfm"))
    matrix = read_matrix(tmp_path / "theirs.tfm")
    np.testing.assert_allclose(
        in_lps(matrix, POINTS), [transform.TransformPoint(p) for p in POINTS.tolist()], atol=1e-9
    )


def test_simpleitk_reads_ours(sitk, tmp_path):
    write_matrix(tmp_path / "ours.txt", MATRIX)
    theirs = sitk.ReadTransform(str(tmp_path / "ours.txt"))
    np.testing.assert_allclose([theirs.TransformPoint(p) for p in POINTS.tolist()], in_lps(MATRIX, POINTS), atol=1e-9)


def test_the_binary_file_of_ants(ants, tmp_path):
    parameters = [*MATRIX[:3, :3].ravel(), 3.0, -4.0, 5.0]
    theirs = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, parameters=parameters, fixed_parameters=(10.0, -20.0, 35.0)
    )
    ants.write_transform(theirs, str(tmp_path / "0GenericAffine.mat"))
    matrix = read_matrix(tmp_path / "0GenericAffine.mat")
    expected = [theirs.apply_to_point(tuple(p)) for p in POINTS.tolist()]
    np.testing.assert_allclose(in_lps(matrix, POINTS), expected, atol=1e-4)  # ANTsPy computes in single precision


def test_a_binary_file_without_ants(tmp_path):
    parameters = np.array([*np.eye(3).ravel(), 1.0, 2.0, 3.0])[:, None]
    content = {"AffineTransform_float_3_3": parameters, "fixed": np.array([[5.0], [6.0], [7.0]])}
    scipy.io.savemat(tmp_path / "shift.mat", content, format="4")
    np.testing.assert_array_equal(read_matrix(tmp_path / "shift.mat")[:3, 3], [-1, -2, 3])


NINE = "1 0 0 0 1 0 0 0 1"


@pytest.mark.parametrize(
    ("kind", "parameters", "fixed", "complaint"),
    [
        ("BSplineTransform_double_3_3", "1 2 3", "", "BSplineTransform_double_3_3; expected one in 3-D of Affine"),
        ("AffineTransform_double_2_2", "1 0 0 1 0 0", "0 0", "AffineTransform_double_2_2; expected one in 3-D"),
        ("AffineTransform_double_3_3", NINE, "0 0 0", "9 parameters"),
        ("AffineTransform_double_3_3", f"{NINE} 0 0 0", "0", "1 fixed ones"),
        ("AffineTransform_double_3_3", f"{NINE} 0 0 east", "0 0 0", "no numbers"),
        ("AffineTransform_double_3_3", f"{NINE} 0 0 nan", "0 0 0", "not finite"),
        ("AffineTransform_double_3_3", "1 0 0 1 0 0 0 0 1 0 0 0", "0 0 0", "singular"),
        ("VersorRigid3DTransform_double_3_3", "1 1 1 0 0 0", "0 0 0", "not finite"),
    ],
)
def test_texts_that_are_no_linear_transform(tmp_path, kind, parameters, fixed, complaint):
    assert complaint in message(text(tmp_path / "wrong.txt", kind, parameters, fixed))


def test_files_that_are_no_transform(tmp_path):
    assert "no such file" in message(tmp_path / "missing.txt")
    (tmp_path / "prose.txt").write_text("just some text: yes\n")
    assert "not an ITK transform" in message(tmp_path / "prose.txt")
    (tmp_path / "bytes.txt").write_bytes(bytes(range(128, 256)) * 10)
    assert "not a text file" in message(tmp_path / "bytes.txt")
    (tmp_path / "empty.txt").write_text("#Insight Transform File V1.0\n")
    assert "none" in message(tmp_path / "empty.txt")
    one = text(tmp_path / "two.txt", "TranslationTransform_double_3_3", "1 2 3", "")
    one.write_text(one.read_text() + one.read_text())
    assert "exactly one" in message(one)
    for content in (b"", b"just some text", bytes(1000), b"MATLAB 5.0 MAT-file" + bytes(200)):
        (tmp_path / "wrong.mat").write_bytes(content)
        message(tmp_path / "wrong.mat")
    scipy.io.savemat(tmp_path / "words.mat", {"AffineTransform_double_3_3": "words", "fixed": "words"}, format="4")
    assert "not a .mat file of ANTs" in message(tmp_path / "words.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"a": np.eye(2), "b": np.eye(2)}, format="4")
    assert "expected one transform and its centre" in message(tmp_path / "other.mat")
    with pytest.raises(UserError, match=r"ending in \.txt"):
        write_matrix(tmp_path / "affine.h5", MATRIX)
