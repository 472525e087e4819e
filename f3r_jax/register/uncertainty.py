"""How far the result of a registration depends on choices that could be made otherwise.

The pair is registered again on a coarser grid: with half and with twice the weight of the gradient penalty, with
another MIND descriptor, and from other positions. The spread of the displacements is the uncertainty.
Letters: x y z voxels.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from f3r_jax.data import transforms
from f3r_jax.data.affine.start import Start, refitted
from f3r_jax.register import pipeline
from f3r_jax.register.alignment import Alignment
from f3r_jax.register.pipeline import RegistrationResult, Settings
from f3r_jax.register.scans import Scan
from f3r_jax.register.stage_timer import StageTimer
from f3r_jax.workdir.trained_network import Network

Uncertainty = Float32[np.ndarray, "x y z"]  # mm
COARSEST = 4.0  # mm: the least voxel size of the repeated registrations
OTHER_DESCRIPTOR = {"mind_ssc": "mind_ssc_near"}  # for all others it is mind_ssc
STARTS = 2  # other positions, at most


def uncertainty(
    fixed: Scan, moving: Scan, result: RegistrationResult, settings: Settings, network: Network | None = None
) -> Uncertainty:
    """The spread of the displacement in mm at each voxel of the working grid of `result`.

    It is the root mean square of the distances of all registrations from their mean. It contains no error that all of
    them share.

    Args:
      fixed: the fixed scan.
      moving: the moving scan.
      result: the registration of both.
      settings: its settings; `refine` is set.
      network: the network of the settings' checkpoint.
    """
    grid = result.transform.grid
    count, mean, squares = 1, transforms.field_on(result.transform, grid), np.zeros(grid.shape, np.float32)
    for alignment, each in _variants(result, settings):
        again = pipeline.continued(alignment, fixed, moving, each, network, StageTimer(None))
        ends = transforms.field_on(again.transform, grid)
        count += 1  # Welford's recurrence: no run is kept
        step = ends - mean
        mean += step / count
        squares += np.sum(step * (ends - mean), axis=-1)
    return np.sqrt(squares / count)


def _variants(result: RegistrationResult, settings: Settings) -> Iterator[tuple[Alignment, Settings]]:
    """The start and the settings of each further registration."""
    coarse = dataclasses.replace(settings, spacing=max(COARSEST, float(result.transform.grid.spacing.max())))
    other = OTHER_DESCRIPTOR.get(settings.mind, "mind_ssc")
    for change in ({"lam": settings.lam / 2}, {"lam": settings.lam * 2}, {"mind": other}):
        yield result.alignment, dataclasses.replace(coarse, **change)
    for start in _other_starts(result):
        line = "another position"
        yield Alignment(start.transform.matrix, result.alignment.initial, start, line), coarse


def _other_starts(result: RegistrationResult) -> Iterator[Start]:
    """The next candidates of the search that matched about as well."""
    search = result.search
    if search is None:
        return
    for each in search.close_candidates()[:STARTS]:
        yield dataclasses.replace(search, transform=refitted(search.transform_of(each), search.fixed))
