"""Registers two scans: affine step, network, instance optimisation. Used by `python -m f3r_jax.register`.

The matrix M maps mm (RAS+) of the fixed scan's frame to mm of the moving scan's frame. u is a displacement in voxels of
the working grid, whose affine is A. Voxel p of that grid corresponds to the point M A (p + u(p)) of the moving scan.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from f3r_jax.common.errors import UserError
from f3r_jax.data import transforms
from f3r_jax.data.affine.start import Start
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.fields import folding_percent, nondiffeomorphic_percent
from f3r_jax.ops.instance_optimisation import AFTER_NETWORK, Refinement
from f3r_jax.ops.instance_optimisation import DEFAULT as REFINEMENT
from f3r_jax.register import evidence, parts, verdict
from f3r_jax.register.alignment import Alignment, align, coarse_copies, mismatch_of
from f3r_jax.register.guidance import UNGUIDED, Guidance, driving_labels
from f3r_jax.register.guidance_report import GuidanceReport, leave_one_out
from f3r_jax.register.network_stage import check_direction, predict_displacement
from f3r_jax.register.scans import Scan
from f3r_jax.register.sources import guides
from f3r_jax.register.stage_timer import StageTimer
from f3r_jax.register.verdict import Verdict
from f3r_jax.register.volumes import WorkingVolumes
from f3r_jax.register.working_grid import COARSEST, release_memory, working_grid
from f3r_jax.workdir import trained_network
from f3r_jax.workdir.trained_network import Network

# Of two alignments, the one with the coarse deformation is kept where its coarse mismatch at the end is lower by this
# fraction. On five of six phantom pairs the mean Dice is 0.4 to 3 higher without it, at a similar mismatch. On the
# sixth it is 54 lower, at a mismatch that is higher by a half.
CLEARLY = 0.1
DIFFERENT = 0.5  # weight of the network's displacement in the result for scans of different people


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a registration. Each is a flag of `f3r_jax.register`."""

    affine: str = "affine"  # one of `alignment.AFFINE_STEPS`, or the path of a matrix file
    spacing: float | None = None  # mm, of the working grid; `working_grid` decides if None
    checkpoint: Path | None = None  # a training run, weights or `builtin`; None: no network
    step: int | None = None  # of the checkpoint; the newest if None
    refine: bool = True
    iterations: int | None = None  # per level of instance optimisation; its defaults if None
    lam: float = REFINEMENT.lam
    mind: str = REFINEMENT.mind
    diffeomorphic: bool = REFINEMENT.diffeomorphic
    guidance: Guidance = UNGUIDED
    memory: float | None = None  # GB to take; `memory.budget` if None


@dataclasses.dataclass(frozen=True)
class RegistrationResult:
    """Result of a registration. Similarities are values of `mind_l1` inside both masks."""

    transform: Transform
    # "initial", "affine", "network", "refined": the stages that were run. None: the scans do not overlap.
    similarity: dict[str, float | None]
    folding_percent: float
    nondiffeomorphic_percent: float  # of the working grid's volume
    seconds: dict[str, float]
    fixed: Float[np.ndarray, "x y z"]  # the scan in [0, 1] on the working grid
    moving: Float[np.ndarray, "x y z"]  # the same, after the affine step
    alignment: Alignment  # the affine step
    verdict: Verdict | None = None  # None before it is made
    search: Start | None = None  # the search for the position, also where it confirmed the headers
    guidance: GuidanceReport = dataclasses.field(default_factory=GuidanceReport)


def register_scans(
    fixed: Scan,
    moving: Scan,
    settings: Settings,
    *,
    network: Network | None = None,
    note: Callable[[str], None] | None = None,
) -> RegistrationResult:
    """Registers two scans.

    Args:
      fixed: the scan that is the reference.
      moving: the scan that is warped.
      settings: the settings.
      network: the network of the settings' checkpoint; loaded if None.
      note: called with one line of text after each stage; None prints nothing.

    Raises:
      UserError: scans that do not overlap, a network for the other direction, or an unreadable matrix file.
    """
    clock = StageTimer(note)
    refinement(settings)  # invalid settings are an error before the work
    if settings.checkpoint is not None:
        network = network or trained_network.load(settings.checkpoint, settings.step)
        check_direction(network, moving.modality, moving.image.path)
    copies = coarse_copies(fixed, moving)
    alignments, search = align(fixed, moving, copies, settings.affine, both=settings.refine, guidance=settings.guidance)
    clock.stop("affine", alignments[0].line)
    result = _result(alignments, fixed, moving, settings, network, clock)
    found = verdict.judge(evidence.gather(*copies, result.transform, search))
    clock.stop("verdict", f"verdict: {verdict.line(found.to_json())}")
    return dataclasses.replace(result, verdict=found, search=search, seconds=clock.seconds)


def _result(
    alignments: Sequence[Alignment],
    fixed: Scan,
    moving: Scan,
    settings: Settings,
    network: Network | None,
    clock: StageTimer,
) -> RegistrationResult:
    """The stages after the affine step, for each of its results; the better result is chosen."""
    searched = alignments[0].start
    if searched is None:
        return continued(alignments[0], fixed, moving, settings, network, clock)
    results = [continued(each, fixed, moving, settings, network, clock, least_spacing=COARSEST) for each in alignments]
    if len(results) == 1:
        return results[0]
    first, second = (mismatch_of(searched, result.transform) for result in results)
    better = 0 if first < (1 - CLEARLY) * second else 1
    found = f"mismatch {first:.4f} with the coarse deformation, {second:.4f} {alignments[1].line}"
    clock.stop("choice", f"chosen: the {('first', 'second')[better]} result ({found})")
    return results[better]


def continued(
    alignment: Alignment,
    fixed: Scan,
    moving: Scan,
    settings: Settings,
    network: Network | None,
    clock: StageTimer,
    *,
    least_spacing: float = 0.0,
) -> RegistrationResult:
    """The stages after the affine step."""
    matrix, initial, start = alignment.matrix, alignment.initial, alignment.start
    grid, spacing, limited = working_grid(
        fixed, moving, matrix, spacing=settings.spacing, gigabytes=settings.memory, least=least_spacing
    )
    volumes = WorkingVolumes(fixed, moving, grid, matrix, start)
    aligned = volumes.similarity(None, settings.mind)
    similarity = {"initial": aligned, "affine": aligned}
    if not np.array_equal(initial, matrix):
        similarity["initial"] = volumes.with_matrix(moving, initial).similarity(None, settings.mind)
    release_memory(grid)
    clock.stop("resampling", f"working grid: {' x '.join(map(str, grid.shape))} voxels of {spacing:g} mm{limited}")
    u: np.ndarray | None = None
    left_out: tuple[float, ...] = ()
    if network is not None:
        u = predict_displacement(network, fixed, moving, volumes, start)
        similarity["network"] = volumes.similarity(u, settings.mind)
        dropped = settings.refine and _worse(similarity["network"], similarity["affine"])
        release_memory(grid)
        line = f"network: similarity {_change(similarity, 'network')}"
        clock.stop("network", f"{line}, left out as it matches worse" if dropped else line)
        u = None if dropped else u
    predicted = u is not None
    if u is None and start is not None and settings.refine:
        u = transforms.resampled(start.transform, grid)
    if settings.refine:
        optimisation = refinement(settings, continued=u is not None)
        finest = optimisation.levels[-1].spacing
        known = guides(fixed, moving, grid, matrix, settings.guidance, preset=settings.mind, spacing=finest)
        if left_out := leave_one_out(volumes, known, optimisation, u if predicted else None):
            clock.stop("leave-one-out", f"landmarks: {np.mean(left_out):.2f} mm when left out, on coarse levels")
        estimate = u if predicted and not settings.guidance.drives else None
        u = volumes.refined(u, optimisation, shown=clock.shown, guides=known)
        if estimate is not None and (weight := network_weight(start)) > 0:
            u = (1 - weight) * u + weight * estimate
        similarity["refined"] = volumes.similarity(u, settings.mind)
        release_memory(grid)
        clock.stop("refinement", f"instance optimisation: similarity {_change(similarity, 'refined')}")
    if u is None:
        u = np.zeros((*grid.shape, 3), np.float32)
    transform = parts.corrected(Transform(grid, matrix, u), fixed)
    driving = driving_labels(fixed.labels, moving.labels, settings.guidance)
    report = GuidanceReport(driving, left_out, parts.report(transform, fixed))
    report.note(clock.stop)
    field = jnp.asarray(transform.displacement)[None]
    fixed_image, moving_image = volumes.images()
    return RegistrationResult(
        transform=transform,
        similarity=similarity,
        folding_percent=float(folding_percent(field)[0]),
        nondiffeomorphic_percent=float(nondiffeomorphic_percent(field)[0]),
        seconds=clock.seconds,
        fixed=fixed_image,
        moving=moving_image,
        alignment=alignment,
        guidance=report,
    )


def network_weight(start: Start | None) -> float:
    """The weight of the network's displacement in the result; the rest is that of instance optimisation after it.

    Where the scans had to be searched for and match as badly as those of different people, instance optimisation adds
    detail that is wrong as often as right. On 16 real pairs of different people the mean Dice was 72.0 by the network
    in the package of that time, of 7,000 steps, 71.4 after instance optimisation and 72.7 for the mean. Without a
    network: 69.6, 70.7 and 71.0. Elsewhere 0.2 was measured: 24 phantom pairs of CT and MR gained 0.4 on average, 8
    pairs of one modality lost 0.9, and a real pair lost 0.9.
    """
    return 0.0 if start is None or start.alike else DIFFERENT


def _change(similarity: Mapping[str, float | None], stage: str) -> str:
    """The similarity before and after a stage as text; a dash where the masks do not overlap."""
    values = (similarity["affine"], similarity[stage])
    return " -> ".join("-" if value is None else f"{value:.4f}" for value in values)


def _worse(after: float | None, before: float | None) -> bool:
    """Whether the scans match worse after a stage than before it, or no longer overlap."""
    return before is not None and (after is None or after > before)


def refinement(settings: Settings, *, continued: bool = False) -> Refinement:
    """The settings of instance optimisation; if it continues from a displacement, it has fewer levels.

    Raises:
      UserError: an invalid number of iterations.
    """
    begin = AFTER_NETWORK if continued else REFINEMENT
    levels = begin.levels
    if settings.iterations is not None:
        levels = tuple(dataclasses.replace(level, steps=settings.iterations) for level in levels)
    try:
        return dataclasses.replace(
            begin,
            levels=levels,
            lam=settings.lam,
            mind=settings.mind,
            diffeomorphic=settings.diffeomorphic,
            robust=settings.guidance.robust,
        )
    except ValueError as error:
        raise UserError(f"--iterations is {settings.iterations}: {error}") from error
