"""The predicted displacements of many cases on disk, and the fields of the controls.

A field of a full-size grid takes 70 MB, so memory holds one sum over all cases and the fields of one case at a time.
"""

import shutil
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np

from f3r_jax.common.arrays import Mask, VoxelField
from f3r_jax.common.files import replacing
from f3r_jax.data.cases import Case
from f3r_jax.data.datasets import Dataset
from f3r_jax.evaluate import controls
from f3r_jax.evaluate.controls import Deviations


class Predictions:
    """Displacements of cases, one file per case in a folder. After a kill each file is complete or absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def add(self, name: str, displacement: VoxelField, seconds: float = 0.0) -> None:
        """Stores the field of a case and the seconds that it took."""
        with replacing(self._path(name)) as temporary:
            np.savez(temporary, displacement=displacement, seconds=seconds)

    def read(self, name: str) -> VoxelField:
        """Reads the field of a case."""
        with np.load(self._path(name)) as file:
            return file["displacement"]

    def seconds(self, name: str) -> float:
        """Seconds that the field of a case took."""
        with np.load(self._path(name)) as file:
            return float(file["seconds"])

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


class ControlFields:
    """The mean field and the other pair's field of each case, from the predictions for the reference cases."""

    def __init__(self, predictions: Predictions, dataset: Dataset, references: Sequence[str]) -> None:
        self._predictions, self._references = predictions, references
        # Summed in a fixed order and in float64, so that the means do not depend on where a killed evaluation resumed.
        self._total = reduce(np.add, (predictions.read(name).astype(np.float64) for name in references))
        self._truths: np.ndarray | None = None
        for name in references:
            truth = dataset.load(name).displacement
            if truth is None:
                self._truths = None
                break
            self._truths = truth.astype(np.float64) if self._truths is None else self._truths + truth

    def mean_field(self, name: str) -> VoxelField:
        """The mean of the predictions for the other references."""
        own = self._predictions.read(name) if name in self._references else None
        return controls.mean_of_others(self._total, len(self._references), own)

    def other_pair(self, name: str) -> VoxelField:
        """The prediction for another reference."""
        return self._predictions.read(controls.other_of(name, self._references))

    def deviations(self, case: Case, prediction: VoxelField, mean_field: VoxelField, mask: Mask | None) -> Deviations:
        """Deviations of the prediction and the ground truth of a case from their means."""
        mean_truth = None
        if self._truths is not None and case.displacement is not None:
            own = case.displacement if case.name in self._references else None
            mean_truth = controls.mean_of_others(self._truths, len(self._references), own)
        return controls.deviations(
            prediction, mean_field, case.displacement, mean_truth, spacing=case.spacing, mask=mask
        )
