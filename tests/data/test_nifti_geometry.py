"""Which map of a NIfTI header is used: ITK's rule, checked with SimpleITK where it is installed."""

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti, nifti_geometry

DATA = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(np.float32)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine(turn=0.1, spacing=(2.0, 3.0, 4.0), origin=(10.0, 20.0, 30.0), shear=0.0):
    made = np.eye(4)
    cosine, sine = np.cos(turn), np.sin(turn)
    made[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing
    made[1, 2] += shear * spacing[2]
    made[:3, 3] = origin
    return made


def store(path, qform, sform, codes, *, units=2, qfac=None, **fields):
    """Writes a volume whose header has both maps, as an odd writer may do."""
    header = nibabel.Nifti1Image(DATA, None).header
    header.set_qform(qform, code=1)
    header.set_sform(sform, code=1)
    header["qform_code"], header["sform_code"] = codes
    header["xyzt_units"], header["vox_offset"] = units, 352
    if qfac is not None:
        header["pixdim"][0] = qfac
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + DATA.tobytes(order="F"))
    return path


def of_itk(sitk, path):
    """The affine that SimpleITK reads, in RAS+; None if it refuses the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    read = np.eye(4)
    read[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    read[:3, 3] = image.GetOrigin()
    return LPS @ read


def test_a_volume_without_codes_is_refused_unless_its_axes_are_declared(tmp_path):
    path = store(tmp_path / "none.nii", affine(), affine(), (0, 0))
    for call in (nifti.read, nifti.read_grid, nifti.read_stored_grid, nifti.notes_on):
        with pytest.raises(UserError, match=r"none\.nii: has no orientation .*--unoriented=RAS"):
            call(path)
    np.testing.assert_array_equal(nifti.read(path, unoriented="RAS").data, DATA)
    np.testing.assert_allclose(nifti.read(path, unoriented="RAS").affine, np.diag([2, 3, 4, 1]))
    stored = nifti.read_stored_grid(path, unoriented="PIR").affine
    np.testing.assert_allclose(stored[:3, :3], [[0, 0, 4], [-2, 0, 0], [0, -3, 0]])


def test_itk_reads_a_volume_without_codes_as_lps(sitk, tmp_path):
    path = store(tmp_path / "none.nii", affine(), affine(), (0, 0))
    np.testing.assert_allclose(of_itk(sitk, path), nifti.read_stored_grid(path, unoriented="LPS").affine)


@pytest.mark.parametrize("letters", ["RA", "RRS", "XYZ", "RASI", "ras"])
def test_letters_that_are_no_axes(letters):
    with pytest.raises(UserError, match="--unoriented is"):
        nifti_geometry.check_axes(letters, "--unoriented")
    nifti_geometry.check_axes("PIR", "--unoriented")


@pytest.mark.parametrize(
    ("codes", "used"),
    [((1, 1), "s"), ((1, 2), "q"), ((1, 4), "q"), ((2, 2), "q"), ((2, 1), "s"), ((0, 2), "s"), ((3, 0), "q")],
)
def test_the_form_that_itk_uses_is_used_and_named(tmp_path, codes, used):
    """The offsets differ by 30 mm, which is 15 voxels along the first axis but for the turn."""
    forms = {"q": affine(), "s": affine(origin=(40.0, 20.0, 30.0))}
    path = store(tmp_path / "odd.nii", *forms.values(), codes)
    np.testing.assert_allclose(nifti.read_stored_grid(path).affine, forms[used], atol=1e-5)
    notes = nifti.notes_on(path)
    if 0 in codes:
        assert notes == ()
    else:
        assert (
            len(notes) == 1
            and f"the {used}form" in notes[0].replace("qform and sform", "")
            and "14.9 voxels" in notes[0]
        )


def test_forms_that_mirror_each_other_are_refused(tmp_path):
    """ITK takes them for equal or not, depending on rounding."""
    path = store(tmp_path / "mirrored.nii", affine(0.0), affine(0.0), (1, 2), qfac=-1)
    with pytest.raises(UserError, match=r"mirrored\.nii: qform and sform are mirror images"):
        nifti.read(path)
    store(path, affine(0.0), affine(0.0), (1, 1), qfac=-1)
    assert "the sform (scanner) is used" in nifti.notes_on(path)[0]


def test_both_forms_agree_without_a_note(tmp_path):
    assert nifti.notes_on(store(tmp_path / "both.nii", affine(), affine(), (1, 2))) == ()


@pytest.mark.parametrize(("units", "scale"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (8 + 3, 0.001)])
def test_lengths_are_converted_to_mm(tmp_path, units, scale):
    path = store(tmp_path / "units.nii", affine(), affine(), (1, 1), units=units)
    expected = affine()
    expected[:3] *= scale
    np.testing.assert_allclose(nifti.read_stored_grid(path).affine, expected, rtol=1e-5)
    assert len(nifti.notes_on(path)) == (scale != 1)
    nifti.write(tmp_path / "mm.nii", DATA, nifti.read_stored_grid(path).affine)
    assert nifti.notes_on(tmp_path / "mm.nii") == ()


def test_sheared_results_are_refused_by_itk_and_read_by_nibabel(sitk, tmp_path):
    """A rectangular qform next to a sheared sform would be read some mm away."""
    sheared = affine(shear=0.2)
    nifti.write(tmp_path / "sheared.nii.gz", DATA, sheared)
    assert of_itk(sitk, tmp_path / "sheared.nii.gz") is None
    np.testing.assert_allclose(nibabel.load(tmp_path / "sheared.nii.gz").affine, sheared, atol=1e-5)
    np.testing.assert_allclose(nifti.read_stored_grid(tmp_path / "sheared.nii.gz").affine, sheared, atol=1e-5)
    assert "not orthogonal" in nifti.notes_on(tmp_path / "sheared.nii.gz")[0]


small = st.floats(-0.3, 0.3)
angles = st.floats(-3.1, 3.1)
lengths = st.tuples(*[st.sampled_from([0.5, 0.9765625, 2.0, 5.0])] * 3)
origins = st.tuples(*[st.floats(-500, 500, width=32)] * 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles, lengths, origins, st.sampled_from([0, 0, 1e-6, 1e-2, 0.2]), st.sampled_from([0, 0, 1e-5, 0.01, 30]),
    st.sampled_from([1, 1, 1, 1.00001, 1.5]), st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(0, 3),
    st.sampled_from([-1, 0, 1]), st.tuples(small, small, small) | st.none(),
)  # fmt: skip
def test_every_header_is_read_as_by_itk(
    sitk, tmp_path, turn, spacing, origin, shear, offset, stretch, codes, units, qfac, quaternion
):
    """ITK refuses sheared axes without a qform; f3r_jax reads them and prints a note."""
    if codes == (0, 0):
        return
    qform = affine(turn, spacing, origin)
    sform = affine(turn, [length * stretch for length in spacing], origin, shear)
    sform[0, 3] += offset
    fields = (
        {}
        if quaternion is None
        else {f"quatern_{letter}": value for letter, value in zip("bcd", quaternion, strict=True)}
    )
    path = store(tmp_path / "any.nii", qform, sform, codes, units=units, qfac=qfac, **fields)
    try:
        theirs, found = of_itk(sitk, path), nifti.read_stored_grid(path).affine
    except UserError as error:
        assert "mirror" in str(error)
        return
    if theirs is None:
        assert any("not orthogonal" in note for note in nifti.notes_on(path))
    else:
        np.testing.assert_allclose(found, theirs, atol=2e-4 * max(1, np.abs(theirs).max()))
