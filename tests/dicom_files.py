"""Writes small DICOM series with pydicom: one file per slice, or an enhanced multi-frame file."""

from pathlib import Path

import numpy as np

CT, ENHANCED_CT, STRUCTURES = ("1.2.840.10008.5.1.4.1.1" + kind for kind in (".2", ".2.1", ".481.3"))
LPS = np.array([-1.0, -1.0, 1.0])


def _texts(values):
    return [f"{value:.12g}"[:16] for value in values]


def _dataset(pydicom, kind, series, number, transfer_syntax):
    data = pydicom.dataset.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{series}.{number + 1}"
    data.file_meta.TransferSyntaxUID = transfer_syntax or pydicom.uid.ExplicitVRLittleEndian
    data.SeriesInstanceUID, data.StudyInstanceUID = f"1.2.3.{series}", "1.2.3"
    data.FrameOfReferenceUID = "1.2.3.0"
    data.PatientName, data.PatientID, data.StudyID = "Phantom", "1", "1"
    data.Modality, data.SeriesDescription = "CT", f"series {series}"
    data.SeriesNumber, data.InstanceNumber = series, number + 1
    return data


def _pixels(data, values, *, slope, intercept):
    stored = np.rint((values - intercept) / slope).astype(np.int16)
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = stored.tobytes()


def _save(data, path):
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(pydicom, folder, volume, affine, *, series=1, slopes=(1.0, -1024.0), order=None, skip=(), change=None):
    """Writes (x y z) with an affine (RAS+) as one file per slice; `change(dataset, index)` edits each before saving."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True, parents=True)
    x, y, z = (LPS * affine[:3, axis] for axis in range(3))
    spacing = [np.linalg.norm(axis) for axis in (x, y, z)]
    paths = []
    for index in range(volume.shape[2]):
        if index in skip:
            continue
        number = index if order is None else order[index]
        data = _dataset(pydicom, CT, series, number, None)
        data.ImageOrientationPatient = _texts([*(x / spacing[0]), *(y / spacing[1])])
        data.ImagePositionPatient = _texts(LPS * (affine[:3, :3] @ (0, 0, index) + affine[:3, 3]))
        data.PixelSpacing = _texts([spacing[1], spacing[0]])
        data.SliceThickness = _texts([spacing[2]])[0]
        data.RescaleSlope, data.RescaleIntercept = slopes
        _pixels(data, volume[:, :, index].T, slope=slopes[0], intercept=slopes[1])
        if change is not None:
            change(data, index)
        paths.append(_save(data, folder / f"s{series}_{number:03}.dcm"))
    return paths


def write_enhanced(pydicom, path, volume, affine, *, order=None, slopes=(1.0, -1024.0)):
    """Writes (x y z) as one enhanced CT file, its frames in the `order` of slices."""
    sequence, item = pydicom.sequence.Sequence, pydicom.dataset.Dataset
    x, y, z = (LPS * affine[:3, axis] for axis in range(3))
    spacing = [np.linalg.norm(axis) for axis in (x, y, z)]
    order = range(volume.shape[2]) if order is None else order
    data = _dataset(pydicom, ENHANCED_CT, 9, 0, None)
    data.NumberOfFrames = len(order)
    shared, measures, turn, rescale = item(), item(), item(), item()
    measures.PixelSpacing, measures.SliceThickness = _texts([spacing[1], spacing[0]]), _texts([spacing[2]])[0]
    turn.ImageOrientationPatient = _texts([*(x / spacing[0]), *(y / spacing[1])])
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = *slopes, "HU"
    shared.PixelMeasuresSequence = sequence([measures])
    shared.PlaneOrientationSequence = sequence([turn])
    shared.PixelValueTransformationSequence = sequence([rescale])
    data.SharedFunctionalGroupsSequence = sequence([shared])
    frames = []
    for index in order:
        frame, position = item(), item()
        position.ImagePositionPatient = _texts(LPS * (affine[:3, :3] @ (0, 0, index) + affine[:3, 3]))
        frame.PlanePositionSequence = sequence([position])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = sequence(frames)
    _pixels(data, np.stack([volume[:, :, index].T for index in order]), slope=slopes[0], intercept=slopes[1])
    return _save(data, path)


def write_structures(pydicom, path):
    """Writes a file of contours, which holds no image."""
    data = _dataset(pydicom, STRUCTURES, 7, 0, None)
    data.Modality = "RTSTRUCT"
    return _save(data, path)
