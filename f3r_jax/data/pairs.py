"""Tables of pairs: `pairs.csv`, or Learn2Reg's `*_dataset.json`. Paths are relative to the table's folder.

`pairs.csv` has one row per pair and a header with these columns. Only the first two are required:

    fixed, moving                        volumes; `fixed` is the MR and `moving` the CT unless modalities are given
    fixed_modality, moving_modality      ct or mr, in any combination
    fixed_labels, moving_labels          label maps, each on its image's grid
    fixed_landmarks, moving_landmarks    CSV with columns x, y, z: mm in RAS+, corresponding row by row
    fixed_mask, moving_mask              voxels to compare
    fixed_exclude_mask, moving_exclude_mask    voxels that take no part
    fixed_extra, moving_extra            further sequences in the frame of a scan, separated by ;
    rigid_mask, preserve_mask            parts of the fixed scan that move rigidly, or keep their volume
    labels_drive                         label values that drive, separated by spaces
    split                                train, validation or test
    name                                 unique; by default the fixed file's name, numbered if it repeats

For training on a CT and an MR, the configuration (`data.direction`) and not the table decides which scan is the moving
one. For two scans of one modality it is the table's. Training and evaluation use labels and landmarks; all other files
take part in `f3r_jax.register`. An empty cell means that there is no such file or
value. Files may occur in several rows.

From the JSON file, training pairs are `training_paired_images` or, without these, the `training` entries "0" (MR, files
*_0000) and "1" (CT, *_0001) of the same case number. `registration_val` is the validation split and `registration_test`
the test split; their pairs are removed from the training split. Label maps are the files of the same name in labelsTr
(labelsTs), if they exist.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from f3r_jax.common.errors import UserError
from f3r_jax.data import grids, volumes
from f3r_jax.data.landmarks import check_landmarks
from f3r_jax.data.pair_files import COLUMNS, SIDES, PairFiles, ScanFiles
from f3r_jax.data.preprocess import MODALITIES
from f3r_jax.data.tables import read_rows

SPLITS = ("train", "validation", "test")


def read_pairs(root: Path, *, unoriented: str | None = None) -> list[PairFiles]:
    """Reads the pairs of a folder or of one table, and checks the files and headers of all pairs.

    `unoriented` declares the axes of volumes without orientation codes.

    Raises:
      UserError: a mistake in the table, or files that are missing, invalid or do not match.
    """
    pairs = list_pairs(root)
    for pair in pairs:
        check_pair(pair, unoriented=unoriented)
    return pairs


def list_pairs(root: Path) -> list[PairFiles]:
    """The same pairs, whose files are not checked; raises a UserError for a mistake in the table."""
    table = root if root.is_file() else _table(root)
    if table.suffix not in (".csv", ".json"):
        raise UserError(f"{table}: neither .csv nor .json; expected pairs.csv or Learn2Reg's *_dataset.json")
    return _from_csv(table) if table.suffix == ".csv" else _from_json(table)


def notes_on(pairs: Iterable[PairFiles], *, unoriented: str | None = None) -> tuple[str, ...]:
    """What a user should know about the headers of the images, one line per file."""
    images = dict.fromkeys(scan.image for pair in pairs for scan in (pair.fixed, pair.moving))
    return tuple(note for image in images for note in volumes.notes_on(image, unoriented=unoriented))


def _table(root: Path) -> Path:
    """The path of the only table in a folder."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with pairs.csv or Learn2Reg's *_dataset.json")
    found = [path for path in (root / "pairs.csv", *sorted(root.glob("*_dataset.json"))) if path.is_file()]
    if len(found) != 1:
        names = " and ".join(path.name for path in found) or "neither"
        raise UserError(f"{root}: found {names}; expected either pairs.csv or one *_dataset.json")
    return found[0]


def check_pair(pair: PairFiles, *, unoriented: str | None = None) -> None:
    """Checks all that needs no voxels: files, headers, label grids, landmarks. Raises a UserError for a mistake."""
    for scan in (pair.fixed, pair.moving):
        grid = volumes.read_grid(scan.image, unoriented=unoriented)
        for file in (scan.labels, scan.exclude, scan.rigid, scan.preserve):
            if file:
                kind = "label map" if file == scan.labels else "mask"
                grids.check_same_grid(grid, volumes.read_grid(file, unoriented=unoriented), kind)
        for file in (*scan.extra, *([scan.mask] if scan.mask else [])):
            volumes.read_grid(file, unoriented=unoriented)
    if bool(pair.fixed.landmarks) != bool(pair.moving.landmarks):
        alone = pair.fixed.landmarks or pair.moving.landmarks
        raise UserError(f"{alone}: landmarks of only one image of pair {pair.name}; expected them for both or neither")
    if pair.fixed.landmarks and pair.moving.landmarks:
        check_landmarks(pair.moving.landmarks, pair.fixed.landmarks)


def _from_csv(path: Path) -> list[PairFiles]:
    rows = read_rows(path)
    if missing := [column for column in SIDES if column not in rows[0]]:
        raise UserError(f"{path}: no column {' and '.join(missing)}; found {', '.join(rows[0])}")
    if "" in rows[0]:
        place = list(rows[0]).index("") + 1
        raise UserError(
            f"{path}: column {place} has no name; expected none of these: pandas writes its index like this, unless "
            "index=False is given"
        )
    if unknown := [column for column in rows[0] if column not in COLUMNS]:
        raise UserError(f"{path}: unknown column {', '.join(unknown)}; expected some of {', '.join(COLUMNS)}")
    pairs = [_pair_of_row(path, number, row) for number, row in enumerate(rows, start=1)]
    if len({pair.split is None for pair in pairs}) == 2:
        raise UserError(f"{path}: column split is empty in some rows; expected it in all of them or in none")
    if "name" not in rows[0]:
        return _numbered(pairs)
    if repeated := [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]:
        raise UserError(f"{path}: name {repeated[0]} is in more than one row; names must be unique")
    return pairs


def _pair_of_row(path: Path, number: int, row: dict[str, str]) -> PairFiles:
    where = f"{path}: pair {number}"
    if empty := [column for column in SIDES if not row[column]]:
        raise UserError(f"{where} has no {empty[0]} file; expected a path relative to {path.parent}")
    modality = {"fixed": row.get("fixed_modality") or "mr", "moving": row.get("moving_modality") or "ct"}
    if wrong := [value for value in modality.values() if value not in MODALITIES]:
        raise UserError(f"{where} has the modality {wrong[0]}; expected {' or '.join(MODALITIES)}")
    split = row.get("split") or None
    if split not in (None, *SPLITS):
        raise UserError(f"{where} has split {split}; expected {', '.join(SPLITS)}")
    name = row.get("name", _stem(row["fixed"]))
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise UserError(f"{where} has the name '{name}'; expected one that can be a file name")
    fixed, moving = (_scan_of_row(path, row, side, modality[side]) for side in SIDES)
    return PairFiles(name, fixed, moving, split, _labels_drive(where, row.get("labels_drive")))


def _scan_of_row(path: Path, row: dict[str, str], side: str, modality: str) -> ScanFiles:
    """The files of one side; the rigid and preserved parts belong to the fixed scan."""

    def file(column: str) -> Path | None:
        return _relative(path, row[column]) if row.get(column) else None

    extra = [name.strip() for name in row.get(f"{side}_extra", "").split(";") if name.strip()]
    return ScanFiles(
        modality,
        _relative(path, row[side]),
        file(f"{side}_labels"),
        file(f"{side}_landmarks"),
        bool(row.get(f"{side}_modality")),
        file(f"{side}_mask"),
        file(f"{side}_exclude_mask"),
        tuple(_relative(path, name) for name in extra),
        *((file("rigid_mask"), file("preserve_mask")) if side == "fixed" else ()),
    )


def _labels_drive(where: str, text: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(map(int, text.split())) if text else None
    except ValueError as error:
        raise UserError(f"{where} has labels_drive {text}; expected numbers separated by spaces") from error


def _relative(table: Path, file: str) -> Path:
    """The path of a cell: relative to the table's folder; ~ is the home folder."""
    return table.parent / os.path.expanduser(file)


def _from_json(path: Path) -> list[PairFiles]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        # Some releases list the pairs; in others they are matched by case number.
        train = [(entry["fixed"], entry["moving"]) for entry in content.get("training_paired_images", [])]
        if not train:
            files = {key: [entry["image"] for entry in content["training"][key]] for key in ("0", "1")}
            ct = {_case_number(path, file): file for file in files["1"]}
            train = [(file, ct[number]) for file in files["0"] if (number := _case_number(path, file)) in ct]
        listed = {
            split: [(entry["fixed"], entry["moving"]) for entry in content.get(key, [])]
            for split, key in (("validation", "registration_val"), ("test", "registration_test"))
        }
        for files_of_pair in [*train, *listed["validation"], *listed["test"]]:
            if wrong := [file for file in files_of_pair if not isinstance(file, str)]:
                raise UserError(f"{path}: a file is given as {wrong[0]!r}; expected its name as text")
    except (ValueError, RecursionError) as error:  # covers JSON and encoding errors
        raise UserError(f"{path}: not readable as JSON ({error}); expected Learn2Reg's dataset description") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: key {error} is missing or has the wrong type; expected Learn2Reg's keys: training "
            "with lists '0' and '1' of {image}, registration_val and registration_test of {fixed, moving}"
        ) from error
    held_out = {frozenset(files) for files in listed["validation"] + listed["test"]}
    listed["train"] = [files for files in train if frozenset(files) not in held_out]
    named = any(listed[split] for split in ("validation", "test"))
    pairs = [_pair_of_files(path, files, split if named else None) for split in SPLITS for files in listed[split]]
    if not pairs:
        raise UserError(f"{path}: no pair of an MR (*_0000) and a CT (*_0001) of the same case number")
    return _numbered(pairs)


def _pair_of_files(path: Path, files: tuple[str, str], split: str | None) -> PairFiles:
    scans = {}  # the fixed one first
    for file in files:
        image = path.parent / file
        labels = image.parent.with_name(image.parent.name.replace("images", "labels")) / image.name
        modality = {"0000": "mr", "0001": "ct"}.get(_stem(file).rpartition("_")[2], "")
        scans[modality] = ScanFiles(modality, image, labels if labels.is_file() and labels != image else None)
    if set(scans) != set(MODALITIES):
        raise UserError(f"{path}: pair {files[0]} and {files[1]}; expected one file *_0000 (MR) and one *_0001 (CT)")
    numbers = sorted({_case_number(path, file) for file in files})
    stem = _stem(files[0]).rsplit("_", 2)[0]
    fixed, moving = scans.values()
    return PairFiles("_".join([stem, *numbers]), fixed, moving, split)


def _case_number(path: Path, file: object) -> str:
    match = re.fullmatch(r".*?(\d+)_\d{4}", _stem(file)) if isinstance(file, str) else None
    if match is None:
        raise UserError(f"{path}: file name {file}; expected Learn2Reg's form, such as AbdomenMRCT_0001_0000.nii.gz")
    return match[1]


def _numbered(pairs: list[PairFiles]) -> list[PairFiles]:
    """Makes repeated names unique: a, a_2, a_3."""
    taken, unique = set(), []
    for pair in pairs:
        name, count = pair.name, 1
        while name in taken:
            count += 1
            name = f"{pair.name}_{count}"
        taken.add(name)
        unique.append(dataclasses.replace(pair, name=name))
    return unique


def _stem(file: str) -> str:
    return Path(file).name.removesuffix(".gz").removesuffix(".nii")
