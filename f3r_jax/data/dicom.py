"""DICOM series: a folder, one file of a series, or an enhanced multi-frame file.

pydicom reads the headers, and SimpleITK the voxels, also compressed ones. The geometry comes from the position of every
slice, so that a missing slice, uneven spacing and a tilted gantry are found. Slices are sorted by position.

Letters: x columns, y rows, z slices.
"""

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable, errors_of
from f3r_jax.data.dicom_geometry import Slice, ordered, stack
from f3r_jax.data.nifti_geometry import PathLike
from f3r_jax.data.optional import pydicom, simpleitk
from f3r_jax.data.stored import StoredVolume

SUFFIXES = (".dcm", ".ima", ".dicom")
MAGIC = b"DICM"  # at byte 128
LISTED = 8  # series named in a message
TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclasses.dataclass(frozen=True)
class _Header:
    path: Path
    tags: Any  # pydicom's data set


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content, or by its name if it has no preamble."""
    with errors_of(path, "read the file"), path.open("rb") as file:
        return file.read(132)[128:] == MAGIC or path.suffix.lower() in SUFFIXES


def open_volume(path: PathLike) -> StoredVolume:
    """Reads the headers of a series and checks its geometry; voxels are not read.

    `path` is a folder with one series, or a file of a series, whose other slices are in the same folder.

    Raises:
      UserError: a package is missing, no or several series, damaged files, or slices that are no volume.
    """
    path = Path(path)
    if path.is_dir() and not any(is_dicom(file) for file in _files(path)):
        raise UserError(f"{path}: a folder without DICOM images; expected a series, or the file of a volume")
    library = pydicom(path, "DICOM")
    simpleitk(path, "DICOM")
    try:
        with warnings.catch_warnings():  # of pydicom, about values that do not matter here
            warnings.simplefilter("ignore")
            headers = _series(library, path)
            slices = [each for header in headers for each in _slices(header)]
    except UserError:
        raise
    except Exception as error:  # pydicom decodes values when they are used, and damaged ones raise nearly anything
        raise UserError(f"{path}: unreadable DICOM header ({' '.join(str(error).split())[:120]})") from error
    _check_same(slices, path)
    sorted_slices = ordered(slices, path)
    affine, notes = stack(sorted_slices, path)
    first = sorted_slices[0]
    whole = all(each.slope == round(each.slope) and each.intercept == round(each.intercept) for each in slices)
    return StoredVolume(
        path=str(path),
        shape=(*first.size, len(slices)),
        affine=affine,
        dtype=np.dtype(np.int32 if whole else np.float32),
        load=partial(_read, path, sorted_slices),
        notes=notes,
    )


def _series(library: Any, path: Path) -> list[_Header]:
    """The headers of the series."""
    if not path.is_dir():
        check_readable(path, "DICOM")
        own = _header(library, path)
        if own is None:
            raise UserError(f"{path}: a DICOM file without an image; expected a file of a series of images")
        uid = own.tags.get("SeriesInstanceUID")
        if "PerFrameFunctionalGroupsSequence" in own.tags or uid is None:
            return [own]
        return [each for each in _headers(library, path.parent) if each.tags.get("SeriesInstanceUID") == uid]
    by_series: dict[str, list[_Header]] = defaultdict(list)
    for header in _headers(library, path):
        by_series[str(header.tags.get("SeriesInstanceUID"))].append(header)
    if not by_series:
        raise UserError(f"{path}: a folder without DICOM images; expected a series, or the file of a volume")
    if len(by_series) > 1:
        listed = [_described(headers) for headers in by_series.values()]
        more = f"; and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        raise UserError(
            f"{path}: {len(listed)} series: {'; '.join(listed[:LISTED])}{more}; expected one: give one of these files "
            "instead of the folder"
        )
    return next(iter(by_series.values()))


def _described(headers: Sequence[_Header]) -> str:
    first = min(headers, key=lambda header: header.path.name)
    words = f"{first.tags.get('SeriesDescription') or 'no description'} ({first.tags.get('Modality') or '?'})"
    return f"{' '.join(words.split())}, {len(headers)} file{'s' if len(headers) > 1 else ''}, such as {first.path.name}"


def _headers(library: Any, folder: Path) -> list[_Header]:
    return [header for file in _files(folder) if (header := _header(library, file)) is not None]


def _files(folder: Path) -> list[Path]:
    with errors_of(folder, "list the folder"):
        return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _header(library: Any, file: Path) -> _Header | None:
    """The header of a file of an image; None for all other files."""
    try:
        if not is_dicom(file):
            return None
        tags = library.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=True)
        kind = str(tags.get("SOPClassUID") or getattr(tags.file_meta, "MediaStorageSOPClassUID", ""))
        image = "Rows" in tags or "Image Storage" in library.uid.UID(kind).name
    except Exception as error:  # damaged headers make pydicom raise nearly anything
        raise UserError(f"{file}: unreadable DICOM header ({' '.join(str(error).split())[:120]})") from error
    if not image:
        return None
    if missing := [name for name in ("SeriesInstanceUID", "Rows", "Columns") if name not in tags]:
        raise UserError(f"{file}: a DICOM image without {', '.join(missing)}; the file seems truncated")
    if int(tags.get("SamplesPerPixel") or 1) != 1:
        raise UserError(f"{file}: a colour image; expected intensities")
    return _Header(file, tags)


def _slices(header: _Header) -> list[Slice]:
    """The slices of a file: one, or those of an enhanced multi-frame file."""
    tags = header.tags
    frames = tags.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if int(tags.get("NumberOfFrames") or 1) > 1:
            raise UserError(f"{header.path}: a multi-frame file without positions; expected an enhanced CT or MR")
        return [_slice(header, 0, [tags])]
    shared = list(tags.get("SharedFunctionalGroupsSequence") or [])
    return [_slice(header, number, [*_groups(frame), *_groups(*shared), tags]) for number, frame in enumerate(frames)]


def _groups(*items: Any) -> list[Any]:
    """The data sets inside the functional groups of a frame."""
    return [element.value[0] for item in items for element in item if element.VR == "SQ" and element.value]


def _slice(header: _Header, frame: int, sources: Sequence[Any]) -> Slice:
    def first(name: str, default: object = None) -> Any:
        value = next((source[name].value for source in sources if name in source), default)
        return default if value in (None, "") else value

    try:
        position, turn, spacing = (
            np.array(first(name), np.float64)
            for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        if position.shape != (3,) or turn.shape != (6,) or spacing.shape != (2,):
            raise ValueError("position, orientation or pixel spacing is missing")
        thickness = float(first("SliceThickness", 0.0))
        slope, intercept = float(first("RescaleSlope", 1.0)), float(first("RescaleIntercept", 0.0))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{header.path}: {' '.join(str(error).split())[:100]}; expected ImagePositionPatient, "
            "ImageOrientationPatient and PixelSpacing: is it a localiser, or a screenshot?"
        ) from error
    size = int(header.tags.Columns), int(header.tags.Rows)
    return Slice(header.path, frame, size, position, turn, spacing, thickness, slope, intercept)


def _check_same(slices: Sequence[Slice], path: Path) -> None:
    """Raises a UserError unless all slices have one size, and the frames of a file one scale."""
    first = slices[0]
    for each in slices:
        if each.size != first.size:
            sizes = " and ".join(f"{x} x {y} ({each.path.name})" for each in (first, each) for x, y in [each.size])
            raise UserError(f"{path}: slices of {sizes} voxels in one series; expected one size")
        if each.path == first.path and (each.slope, each.intercept) != (first.slope, first.intercept):
            raise UserError(f"{path}: frames of different rescale slopes; expected one slope")


def _read(path: Path, slices: Sequence[Slice], dtype: DTypeLike, index: tuple[int, ...] | None = None) -> np.ndarray:
    """The voxels (x y z) in the order of the slices."""
    sitk = simpleitk(path, "DICOM")
    data: np.ndarray = np.empty((*slices[0].size, len(slices)), dtype, order="F")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    frames: Any = None
    opened = None
    for z, each in enumerate(slices):
        if opened != each.path:
            reader.SetFileName(str(each.path))
            try:
                frames, opened = sitk.GetArrayFromImage(reader.Execute()), each.path
            except (RuntimeError, MemoryError) as error:
                raise UserError(f"{each.path}: cannot read the voxels, the file seems truncated or damaged") from error
        data[:, :, z] = (frames if frames.ndim == 2 else frames[each.frame]).T
    return data
