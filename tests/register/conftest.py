"""The network in the package, and a phantom pair to register with it."""

from pathlib import Path

import numpy as np
import pytest

from f3r_jax.config import CT_WINDOW, MR_PERCENTILES
from f3r_jax.data import preprocess
from f3r_jax.data.nifti import Image
from f3r_jax.data.phantom.generate import make_case
from f3r_jax.register.scans import Scan
from f3r_jax.workdir import trained_network, weights


@pytest.fixture(scope="module")
def network():
    return trained_network.load(Path(weights.BUILTIN))


@pytest.fixture(scope="module")
def pair():
    """A CT and an MR of a phantom in one frame, as scans, and the labels of both."""
    case = make_case(7, 0, shape=(64, 48, 48), spacing=(4.8,) * 3)
    affine = np.diag([4.8, 4.8, 4.8, 1.0])
    scans = {}
    for modality in ("ct", "mr"):
        image = Image(getattr(case, modality), affine, modality)
        normalised = preprocess.normalise(image, modality, ct_window=CT_WINDOW, mr_percentiles=MR_PERCENTILES)
        labels = Image(getattr(case, f"{modality}_labels"), affine, f"labels of the {modality}")
        scans[modality] = Scan(image, normalised, modality, image.grid, labels=labels)
    return scans
