import json

import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import landmarks, nifti, pairs


def _write(root, name, *, shape=(6, 5, 4), shift=0.0):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4)
    affine[0, 3] = shift
    nifti.write(path, np.zeros(shape, np.int16), affine)


def _table(root, text):
    (root / "pairs.csv").write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def folder(tmp_path):
    for name in ("mr.nii.gz", "ct.nii.gz", "mr_label.nii.gz", "ct_label.nii.gz"):
        _write(tmp_path, name)
    return tmp_path


def _message(root):
    with pytest.raises(UserError) as caught:
        pairs.read_pairs(root)
    message = str(caught.value)
    assert "\n" not in message and str(root) in message
    return message


def test_all_columns(folder):
    for name in ("mr.csv", "ct.csv"):
        (folder / name).write_text("x,y,z\n1,2,3\n4.5,5,-6e1\n")
    row = "ct.nii.gz, mr.nii.gz ,ct_label.nii.gz,,ct.csv,mr.csv,ct,mr,test,anna\n"
    columns = "fixed,moving,fixed_labels,moving_labels,fixed_landmarks,moving_landmarks,fixed_modality,moving_modality"
    (pair,) = pairs.read_pairs(_table(folder, f"\ufeff{columns},split,name\n\n{row}"))
    assert pair == pairs.PairFiles(
        "anna",
        pairs.ScanFiles("ct", folder / "ct.nii.gz", folder / "ct_label.nii.gz", folder / "ct.csv"),
        pairs.ScanFiles("mr", folder / "mr.nii.gz", None, folder / "mr.csv"),
        "test",
    )
    np.testing.assert_array_equal(landmarks.read_landmarks(folder / "ct.csv"), [[1, 2, 3], [4.5, 5, -60]])


def test_two_columns_and_repeated_files(folder):
    read = pairs.read_pairs(_table(folder, "fixed,moving\nmr.nii.gz,ct.nii.gz\nmr.nii.gz,ct.nii.gz\n"))
    assert [pair.name for pair in read] == ["mr", "mr_2"]
    assert read[0].fixed.image == folder / "mr.nii.gz" and read[0].moving.image == folder / "ct.nii.gz"
    assert read[0].split is None and read[0].fixed.modality == "mr" and not read[0].fixed.stated


def test_a_table_of_another_name(folder):
    (folder / "mine.csv").write_text("fixed,moving\nmr.nii.gz,ct.nii.gz\n")
    (pair,) = pairs.read_pairs(folder / "mine.csv")
    assert pair.moving.image == folder / "ct.nii.gz"
    with pytest.raises(UserError, match=r"mr\.nii\.gz: neither .csv nor .json"):
        pairs.read_pairs(folder / "mr.nii.gz")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no rows"),
        ("fixed,moving\n", "holds no rows"),
        ("fixed,labels\nmr.nii.gz,a\n", "no column moving; found fixed, labels"),
        ("fixed|moving\nmr.nii.gz|ct.nii.gz\n", "no column fixed and moving; found fixed|moving"),
        ("fixed,moving,fixed_label\nmr.nii.gz,ct.nii.gz,a\n", "unknown column fixed_label"),
        ("fixed,moving\nmr.nii.gz\n", "row 1 has 1 cells; the header has 2"),
        ("fixed,moving\nmr.nii.gz,\n", "pair 1 has no moving file"),
        ("fixed,moving\nmr.nii.gz,absent.nii.gz\n", "absent.nii.gz: no such file"),
        ("fixed,moving,moving_labels\nmr.nii.gz,ct.nii.gz,absent.nii.gz\n", "absent.nii.gz: no such file"),
        ("fixed,moving,split\nmr.nii.gz,ct.nii.gz,tset\n", "split tset; expected train, validation, test"),
        ("fixed,moving,split\nmr.nii.gz,ct.nii.gz,test\nmr.nii.gz,ct.nii.gz,\n", "column split is empty in some rows"),
        ("fixed,moving,name\nmr.nii.gz,ct.nii.gz,a\nmr.nii.gz,ct.nii.gz,a\n", "name a is in more than one row"),
        ("fixed,moving,name\nmr.nii.gz,ct.nii.gz,\n", "has the name ''"),
        ("fixed,moving,name\nmr.nii.gz,ct.nii.gz,../a\n", "has the name '../a'"),
        ("fixed,moving,name\nmr.nii.gz,ct.nii.gz,..\n", "has the name '..'"),
        ("fixed,moving,moving_modality\nmr.nii.gz,ct.nii.gz,pet\n", "the modality pet; expected ct or mr"),
        ("fixed,moving,labels_drive\nmr.nii.gz,ct.nii.gz,liver\n", "labels_drive liver; expected numbers"),
        ("fixed,moving,fixed_landmarks\nmr.nii.gz,ct.nii.gz,p.csv\n", "landmarks of only one image of pair mr"),
    ],
)
def test_mistakes_in_the_table(folder, text, told):
    assert told in _message(_table(folder, text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x,y\n1,2\n", "no column z"),
        ("x,y,z\n1,2,three\n", "three"),
        ("x,y,z\n1,2,nan\n", "NaN"),
        ("x,y,z\n1,2,3\n1,2,3\n", "2 landmarks"),
    ],
)
def test_mistakes_in_landmarks(folder, text, told):
    (folder / "mr.csv").write_text("x,y,z\n1,2,3\n")
    (folder / "ct.csv").write_text(text)
    row = "fixed,moving,fixed_landmarks,moving_landmarks\nmr.nii.gz,ct.nii.gz,mr.csv,ct.csv\n"
    assert told in _message(_table(folder, row))


def test_a_label_map_on_another_grid_shows_before_voxels_are_read(folder):
    table = _table(folder, "fixed,moving,fixed_labels\nmr.nii.gz,ct.nii.gz,mr_label.nii.gz\n")
    _write(folder, "mr_label.nii.gz", shape=(6, 5, 5))
    assert "mr_label.nii.gz: label map of 6 x 5 x 5 voxels" in _message(table)
    _write(folder, "mr_label.nii.gz", shift=0.1)
    assert "mr_label.nii.gz: affine" in _message(table)


def test_the_folder_must_hold_one_description(tmp_path):
    assert "no such folder" in _message(tmp_path / "absent")
    assert "found neither" in _message(tmp_path)
    (tmp_path / "A_dataset.json").write_text("{}")
    assert "found pairs.csv and A_dataset.json" in _message(_table(tmp_path, "fixed,moving\n"))


@pytest.fixture
def learn2reg(tmp_path):
    """Three cases with both modalities and labels, an MR alone, a test pair without labels."""
    training = {"0": [], "1": []}
    for case, modalities in ((1, "01"), (2, "01"), (3, "01"), (7, "0")):
        for modality in modalities:
            name = f"AbdomenMRCT_{case:04d}_000{modality}.nii.gz"
            training[modality].append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
            _write(tmp_path, f"imagesTr/{name}")
            _write(tmp_path, f"labelsTr/{name}")
    files = [f"./imagesTr/AbdomenMRCT_0003_000{modality}.nii.gz" for modality in (0, 1)]
    tests = [f"./imagesTs/AbdomenMRCT_0009_000{modality}.nii.gz" for modality in (0, 1)]
    for name in tests:
        _write(tmp_path, name)
    return tmp_path, {
        "training": training,
        "registration_val": [{"fixed": files[0], "moving": files[1]}],
        "registration_test": [{"fixed": tests[0], "moving": tests[1]}],
    }


def _described(root, content):
    (root / "AbdomenMRCT_dataset.json").write_text(json.dumps(content))
    return root


def test_learn2reg_pairs_by_case_number(learn2reg):
    root, content = learn2reg
    read = {pair.name: pair for pair in pairs.read_pairs(_described(root, content))}
    assert {name: pair.split for name, pair in read.items()} == {
        "AbdomenMRCT_0001": "train",
        "AbdomenMRCT_0002": "train",
        "AbdomenMRCT_0003": "validation",
        "AbdomenMRCT_0009": "test",
    }
    pair = read["AbdomenMRCT_0003"]
    assert pair.fixed == pairs.ScanFiles(
        "mr", root / "imagesTr/AbdomenMRCT_0003_0000.nii.gz", root / "labelsTr/AbdomenMRCT_0003_0000.nii.gz"
    )
    assert pair.moving.image.name == "AbdomenMRCT_0003_0001.nii.gz" and pair.moving.labels.parent.name == "labelsTr"
    assert read["AbdomenMRCT_0009"].moving.labels is None


def test_two_scans_of_one_modality_keep_the_order_of_the_table(folder):
    columns, row = "fixed,moving,fixed_modality,moving_modality", "mr.nii.gz,ct.nii.gz"
    for direction in ("ct_to_mr", "mr_to_ct"):
        (pair,) = pairs.read_pairs(_table(folder, f"{columns}\n{row},mr,mr\n"))
        assert pair.ordered(direction) == (pair.moving, pair.fixed)
    (pair,) = pairs.read_pairs(_table(folder, f"{columns}\n{row},mr,ct\n"))
    assert pair.ordered("ct_to_mr") == (pair.moving, pair.fixed)
    assert pair.ordered("mr_to_ct") == (pair.fixed, pair.moving)


def test_columns_of_what_takes_part(folder):
    columns = "fixed_mask,moving_exclude_mask,moving_extra,rigid_mask,preserve_mask,labels_drive"
    row = "mr_label.nii.gz,ct_label.nii.gz,ct.nii.gz; ct_label.nii.gz,mr_label.nii.gz,mr_label.nii.gz,1 3"
    (pair,) = pairs.read_pairs(_table(folder, f"fixed,moving,{columns}\nmr.nii.gz,ct.nii.gz,{row}\n"))
    of_fixed, of_moving = folder / "mr_label.nii.gz", folder / "ct_label.nii.gz"
    assert (pair.fixed.mask, pair.fixed.rigid, pair.fixed.preserve) == (of_fixed,) * 3
    assert pair.moving.exclude == of_moving and pair.moving.extra == (folder / "ct.nii.gz", of_moving)
    assert pair.labels_drive == (1, 3) and pair.fixed.extra == ()


def test_learn2reg_with_listed_pairs_and_without_held_out_ones(learn2reg):
    root, content = learn2reg
    content["training_paired_images"] = content.pop("registration_val")
    del content["registration_test"]
    (pair,) = pairs.read_pairs(_described(root, content))
    assert pair.name == "AbdomenMRCT_0003" and pair.split is None


def test_mistakes_in_the_json(learn2reg):
    root, content = learn2reg
    (root / "AbdomenMRCT_dataset.json").write_text('{"training": ')
    assert "AbdomenMRCT_dataset.json: not readable as JSON" in _message(root)
    assert "'1'" in _message(_described(root, {"training": {"0": []}}))
    assert "Learn2Reg's keys" in _message(_described(root, {"training": []}))
    assert "Learn2Reg's keys" in _message(_described(root, []))
    assert "no pair of an MR" in _message(_described(root, {"training": {"0": [], "1": []}}))
    odd = {"training": {"0": [{"image": "imagesTr/scan.nii.gz"}], "1": []}}
    assert "file name imagesTr/scan.nii.gz" in _message(_described(root, odd))
    two_mr = {"fixed": "imagesTr/AbdomenMRCT_0001_0000.nii.gz", "moving": "imagesTr/AbdomenMRCT_0002_0000.nii.gz"}
    assert "one file *_0000 (MR)" in _message(_described(root, {**content, "registration_val": [two_mr]}))
    (root / "imagesTr/AbdomenMRCT_0002_0001.nii.gz").unlink()
    assert "AbdomenMRCT_0002_0001.nii.gz: no such file" in _message(_described(root, content))
