"""Instance optimisation: optimises the displacement of one pair, starting from zero or from a network's prediction.

MIND descriptors of both volumes are computed once and pooled onto a coarser grid, as in ConvexAdam (Siebert, Hansen,
Heinrich, 2021). A step then neither warps an image nor computes a descriptor. ConvexAdam's discrete search is left out:
on phantoms a first level of 16 voxels also found motions of 40 voxels, in a fifth of the time. Adam minimises

    mean over known voxels and channels of (F(p) - M(p + u(p)))^2  +  lam * gradient_l2(u)

and, if given, the costs of further sources (`ops/sources.py`) and of restraints (`ops/restraints.py`), over a smoothed
control grid, from coarse to fine. M is linearised every few steps (`ops/quadratic.py`); a step costs a quarter of a
linearisation. gradient_l2 has no unit, so both terms are comparable on all grids. With `diffeomorphic`, the control
grid is a stationary velocity and u is its exponential; the penalty applies to the velocity. Between linearisations, a
change e of the velocity is treated as a displacement by e before the current map, as in log-demons (Vercauteren et al.,
MICCAI 2008). A step then needs no exponential and no gradient of one, which took ten times as long for 0.3 mm of
end-point error.

Letters: b batch (of one), x y z voxels, c channels. A level's fields are in voxels of its grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from f3r_jax.ops.fields import exponential, gradient, logarithm
from f3r_jax.ops.losses import gradient_l2
from f3r_jax.ops.pyramid import Weight, pool, resize, smooth
from f3r_jax.ops.quadratic import chain, evaluate
from f3r_jax.ops.restraints import Restraints, landmark_cost, near_landmarks, near_volumes, rigid_cost, volume_cost
from f3r_jax.ops.restraints import coarser as coarser_restraints
from f3r_jax.ops.shapes import Displacement, Features, Scalar, Shape, Volume
from f3r_jax.ops.sources import Source, add, coarser, compare, mind_source, scaled

NONE = Restraints()


@dataclass(frozen=True)
class Level:
    """Adam steps on a grid of `spacing` full voxels. `rate` is in voxels of this grid and decays to 0 as a cosine."""

    spacing: int
    steps: int
    rate: float


@dataclass(frozen=True)
class Refinement:
    """Settings, chosen on phantom pairs of up to 144 x 144 x 128 voxels, at 1 and 2 mm, and a real pair. Dice is in %.

    Attributes:
      mind: preset of MIND. With `mind_ssc_near` the phantoms' mean Dice was 1 higher and the end-point error 0.5 mm
        larger; the result of the real pair was worse.
      lam: weight of gradient_l2. Mean Dice of three phantom pairs and of the real one, and the phantoms' mean end-point
        error: 93.8, 68.9 and 3.5 mm at 0.1; 94.5, 67.7 and 3.5 mm at 0.2; 94.6, 62.6 and 3.7 mm at 0.4.
      levels: 80 steps each. Twice as many gained 0.2 Dice; half as many cost 2 mm of end-point error on one pair.
        Rates of 0.15 to 0.6 gave similar results, as did no first level, or a further level of spacing 1.
      refresh: steps per linearisation. 2 takes twice as long and gained less than 0.1 Dice.
      diffeomorphic: the control grid is a velocity, and the field does not fold. Without, at the best weight of 0.4,
        two of the three phantom pairs folded in 3 % of their voxels, with the same Dice in two thirds of the time. The
        Dice of the real pair was 64.2.
      robust: places that differ by far more than the mean count less (`sources.OUTLYING`).
    """

    mind: str = "mind_ssc"
    lam: float = 0.2
    levels: tuple[Level, ...] = tuple(Level(spacing, 80, 0.3) for spacing in (16, 8, 4, 2))
    refresh: int = 5
    diffeomorphic: bool = True
    robust: bool = False

    def __post_init__(self) -> None:
        spacings = [level.spacing for level in self.levels]
        if not self.levels or any(spacing % self.levels[-1].spacing for spacing in spacings):
            raise ValueError(f"the grids have spacings {spacings}; expected multiples of the last level's")
        if steps := [level.steps for level in self.levels if level.steps % self.refresh]:
            raise ValueError(f"a level has {steps[0]} steps; expected a multiple of refresh, {self.refresh}")


DEFAULT = Refinement()
# A network has already found the large motion, which the coarse levels would only blur. Mean Dice, HD95 and end-point
# error of three phantom pairs after a network (Dice 83.2 %): 94.9 %, 2.7 mm and 3.5 mm. With all levels: 94.5 %, 3.2 mm
# and 3.4 mm, the same as from zero. From zero, these two levels miss the motion (end-point error 8 to 14 mm).
AFTER_NETWORK = replace(DEFAULT, levels=DEFAULT.levels[2:])


class LevelPair(NamedTuple):
    """What a level compares, the field that it adds to, and what else holds for the field, all on its grid."""

    sources: tuple[Source, ...]
    base: Displacement  # or velocity
    restraints: Restraints


def refine(
    fixed: Volume,
    moving: Volume,
    *,
    start: Displacement | None = None,
    fixed_mask: Weight | None = None,
    moving_mask: Weight | None = None,
    weight: Scalar | None = None,
    further: Sequence[Source] = (),
    restraints: Restraints = NONE,
    settings: Refinement = DEFAULT,
    progress: Callable[..., None] | None = None,
) -> Displacement:
    """The backward displacement, in voxels of the fixed grid, that aligns `moving` with `fixed`.

    Args:
      fixed: (1 x y z 1), intensities in [0, 1].
      moving: (1 x y z 1) on the same grid.
      start: the initial displacement, such as a network's prediction; zero if None.
      fixed_mask: 1 where the fixed volume is known, else 0. Other voxels have no influence. None: all are known.
      moving_mask: the same for the moving volume. Voxels outside the grid are unknown.
      weight: of MIND of the two volumes; None: 1.
      further: more sources, on a grid of the last level's spacing.
      restraints: landmarks, and parts that move rigidly or keep their volume, on the grid of the volumes.
      settings: the loss and the optimisation.
      progress: called after each of `calls(settings)` equal parts of the work, with `loss=`.
    """
    finest = settings.levels[-1].spacing
    own = mind_source(fixed, moving, fixed_mask, moving_mask, preset=settings.mind, spacing=finest, weight=weight)
    _, x, y, z, _ = fixed.shape
    return optimise(
        (own, *further), (x, y, z), start=start, restraints=restraints, settings=settings, progress=progress
    )


def optimise(
    sources: tuple[Source, ...],
    shape: Shape,
    *,
    start: Displacement | None = None,
    restraints: Restraints = NONE,
    settings: Refinement = DEFAULT,
    progress: Callable[..., None] | None = None,
) -> Displacement:
    """The displacement on a grid of `shape` at which the sources, on a grid of the last level's spacing, match best."""
    finest = settings.levels[-1].spacing
    base = _base(start, shape, spacing=finest, diffeomorphic=settings.diffeomorphic)
    pair = LevelPair(sources, base, coarser_restraints(restraints, finest))
    values, spacing = jnp.zeros_like(base), finest
    for level in settings.levels:
        state, here = _begin(values, pair, spacing=spacing, new_spacing=level.spacing, finest=finest)
        values, spacing = _descend(state, here, level, settings, progress), level.spacing
    return _end(values, base, start, shape, spacing=finest, diffeomorphic=settings.diffeomorphic)


def calls(settings: Refinement) -> int:
    """How many times `refine` calls `progress`."""
    return sum(level.steps // settings.refresh for level in settings.levels)


@partial(jax.jit, static_argnames=("shape", "spacing", "diffeomorphic"))
def _base(start: Displacement | None, shape: Shape, *, spacing: int, diffeomorphic: bool) -> Features:
    """The initial field on a grid of `spacing`, as a velocity if `diffeomorphic`; zero without a start."""
    if start is None:
        return jnp.zeros((1, *(-(-n // spacing) for n in shape), 3))
    base = pool(start, spacing) / spacing
    return logarithm(base) if diffeomorphic else base


_ADAM = optax.scale_by_adam()


@partial(jax.jit, static_argnames=("spacing", "new_spacing", "finest"))
def _begin(
    values: Displacement, pair: LevelPair, *, spacing: int, new_spacing: int, finest: int
) -> tuple[tuple, LevelPair]:
    """The state at the start of a level: the control values of the previous level, and the pair, on the new grid."""
    ratio, field = new_spacing // finest, _control(values)
    if new_spacing % spacing == 0:
        field = pool(field, new_spacing // spacing) * (spacing / new_spacing)
    else:
        x, y, z = (-(-n // ratio) for n in pair.base.shape[1:4])
        field = resize(field, (x, y, z), spacing / new_spacing)
    sources = tuple(coarser(source, ratio) for source in pair.sources)
    here = LevelPair(sources, pool(pair.base, ratio) / ratio, coarser_restraints(pair.restraints, ratio))
    return (field, _ADAM.init(field)), here


@partial(jax.jit, static_argnames=("shape", "spacing", "diffeomorphic"))
def _end(
    values: Features, base: Features, start: Displacement | None, shape: Shape, *, spacing: int, diffeomorphic: bool
) -> Displacement:
    """The displacement on the full grid. Without `diffeomorphic`, it keeps the fine detail of `start`."""
    found = resize(_control(values), shape, spacing)
    if diffeomorphic:
        return exponential(resize(base, shape, spacing) + found)
    return found if start is None else start + found


def _descend(
    state: tuple, pair: LevelPair, level: Level, settings: Refinement, progress: Callable[..., None] | None
) -> Displacement:
    """The control values after the steps of a level."""
    rates = level.rate * (1 + np.cos(np.pi * np.arange(level.steps) / level.steps)) / 2
    for piece in rates.astype(np.float32).reshape(-1, settings.refresh):
        ways = {"diffeomorphic": settings.diffeomorphic, "robust": settings.robust}
        state, loss = _steps(state, pair, piece, np.float32(settings.lam), **ways)
        if progress is not None:
            progress(loss=float(loss))
    return state[0]


def _control(values: Displacement) -> Displacement:
    """The field of a control grid: three smoothings, close to a Gaussian of 1.4 voxels, as in ConvexAdam."""
    return smooth(values, 3)


@partial(jax.jit, static_argnames=("diffeomorphic", "robust"), donate_argnums=0)
def _steps(
    state: tuple, pair: LevelPair, rates: Array, lam: Scalar, *, diffeomorphic: bool, robust: bool
) -> tuple[tuple, Scalar]:
    """Adam steps at the given rates with one linearisation, and the loss before them."""
    sources, base, (landmarks, rigid, volumes) = pair
    first = base + _control(state[0])
    about = exponential(first) if diffeomorphic else first
    quadratic, weight = compare(sources, about, robust=robust)
    if rigid is not None:
        quadratic = add(quadratic if weight is None else scaled(quadratic, weight), rigid_cost(rigid, about))
        weight = None
    # A change e of the velocity turns phi = exp(v) into phi(p + e(p)) = phi(p) + D phi e(p), as in log-demons.
    jacobian = gradient(about) + jnp.eye(3) if diffeomorphic else None
    if jacobian is not None:
        quadratic = chain(quadratic, jacobian[0])
    near = None if landmarks is None else near_landmarks(landmarks, about, jacobian)
    constant = None if volumes is None else near_volumes(volumes, about)

    def loss(values: Displacement) -> Scalar:
        total = base + _control(values)
        costs = evaluate(quadratic, total - first)
        value = jnp.sum(costs if weight is None else weight * costs) + lam * gradient_l2(total)
        value = value if near is None else value + landmark_cost(near, total - first)
        return value if constant is None else value + volume_cost(constant, total - first)

    def step(state: tuple, rate: Scalar) -> tuple[tuple, Scalar]:
        values, moments = state
        value, slope = jax.value_and_grad(loss)(values)
        updates, moments = _ADAM.update(slope, moments)
        return (values - rate * updates, moments), value

    state, losses = lax.scan(step, state, rates)
    return state, losses[0]
