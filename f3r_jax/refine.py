"""Instance refinement: the displacement of one pair, found for that pair alone, from nothing or from a network's.

MIND descriptors of both volumes are computed once and pooled onto a coarser grid, so that a step neither warps an image
nor computes a descriptor, as in ConvexAdam (Siebert, Hansen, Heinrich, 2021). Its discrete search is left out: on
phantoms a first level of 16 voxels found motions of 40 voxels too, in a fifth of the time. Adam minimises over a
smoothed control grid, coarse grid first,

    mean over known voxels and channels of (F(p) - M(p + u(p)))^2  +  lam * gradient_l2(u)

in which M is linearised anew every few steps (`ops/quadratic.py`): a step between costs a quarter of that.
Both terms mean the same on every grid, as gradient_l2 has no unit. With `diffeomorphic` the control grid is a
stationary velocity and u its exponential.

Letters: b batch (of one), x y z voxels, c channels. A level's fields are in voxels of its grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from f3r_jax.losses import gradient_l2
from f3r_jax.ops.fields import compose, exponential
from f3r_jax.ops.mind import PRESETS, mind
from f3r_jax.ops.pyramid import Weight, extend, pool, pool_known, resize, smooth
from f3r_jax.ops.quadratic import evaluate, linearise
from f3r_jax.ops.warp import warp
from f3r_jax.shapes import Displacement, Features, Scalar, Volume


@dataclass(frozen=True)
class Level:
    """Adam steps on a grid of `spacing` full voxels; `rate`, in its voxels, falls to zero like a cosine."""

    spacing: int
    steps: int
    rate: float


@dataclass(frozen=True)
class Refinement:
    """How a pair is refined. Chosen on phantom pairs of up to 144 x 144 x 128 voxels, at 1 and 2 mm, and a real pair.

    Attributes:
      mind: the preset. With `mind_ssc_near` the phantom's mean Dice was 1 higher and the end-point error 0.5 mm larger,
        and the real pair was matched worse.
      lam: weight of gradient_l2. 0.3 folds 0.4 % of the real pair at 2 mm, 0.5 less than 0.1 % and has 1.6 less Dice.
      levels: 80 steps each; 200 gained less than 0.1 Dice, 40 lost 2 mm of end-point error on one pair. Rates of
        0.1 to 0.5 came out alike.
      refresh: steps to a linearisation. 1 takes three times as long and gained 0.2 Dice, 20 lost 0.3.
      diffeomorphic: the control grid is a velocity; hardly anything folds, and a step takes several times as long.
    """

    mind: str = "mind_ssc"
    lam: float = 0.4
    levels: tuple[Level, ...] = tuple(Level(spacing, 80, 0.3) for spacing in (16, 8, 4, 2))
    refresh: int = 5
    diffeomorphic: bool = False

    def __post_init__(self) -> None:
        spacings = [level.spacing for level in self.levels]
        if not self.levels or any(spacing % self.levels[-1].spacing for spacing in spacings):
            raise ValueError(f"the grids have spacings {spacings}; expected multiples of the last level's")
        if steps := [level.steps for level in self.levels if level.steps % self.refresh]:
            raise ValueError(f"a level has {steps[0]} steps; expected a multiple of refresh, {self.refresh}")


DEFAULT = Refinement()


class Side(NamedTuple):
    """One of the two volumes on a level's grid, and how much of a voxel is known."""

    features: Features  # b x y z c
    weight: Features  # b x y z 1


def refine(
    fixed: Volume,
    moving: Volume,
    *,
    start: Displacement | None = None,
    fixed_mask: Weight | None = None,
    moving_mask: Weight | None = None,
    settings: Refinement = DEFAULT,
    progress: Callable[..., None] | None = None,
) -> Displacement:
    """The displacement (voxels, pull) that aligns `moving` with `fixed`.

    Args:
      fixed: (1 x y z 1), intensities in [0, 1].
      moving: the same on the same grid.
      start: a displacement to start at, such as a network's; zero if None.
      fixed_mask: 1 where the fixed volume is known, else 0; what it is elsewhere has no influence. None: known.
      moving_mask: the same for the moving volume. Beyond the grid nothing is known.
      settings: what is minimised and how.
      progress: called after each of `calls(settings)` equal pieces of work, with `loss=`.
    """
    shape, finest = fixed.shape[1:4], settings.levels[-1].spacing
    sides = [
        _describe(image, jnp.ones_like(image) if mask is None else mask, preset=settings.mind, spacing=finest)
        for image, mask in ((fixed, fixed_mask), (moving, moving_mask))
    ]
    found, spacing = jnp.zeros((1, *sides[0].weight.shape[1:4], 3)), finest
    base = found if start is None else pool(start, finest) / finest
    if settings.diffeomorphic and start is not None:
        base = _logarithm(base)
    for level in settings.levels:
        found = _onto(found, spacing, level.spacing, sides[0], finest)
        spacing = level.spacing
        found = _descend(found, base, sides, level, settings, progress)
    found = resize(found, shape, spacing)
    if settings.diffeomorphic:
        return exponential(resize(base, shape, finest) + found)
    return found if start is None else start + found


def calls(settings: Refinement) -> int:
    """How often `refine` reports progress."""
    return sum(level.steps // settings.refresh for level in settings.levels)


@partial(jax.jit, static_argnames=("preset", "spacing"))
def _describe(image: Volume, mask: Weight, *, preset: str, spacing: int) -> Side:
    """The descriptor pooled onto a grid of `spacing`; of the image only what lies in the mask takes part."""
    image = extend(image, mask, voxels=reach_of(preset))
    return Side(*pool_known(mind(image, preset=preset), (mask > 0).astype(image.dtype), spacing))


def reach_of(preset: str) -> int:
    """Voxels along an axis by which the descriptor of a preset sees beyond its own."""
    row = PRESETS[preset]
    return len(row.taps) // 2 + max(abs(step) for pair in row.pairs for offset in pair for step in offset)


@partial(jax.jit, static_argnames="ratio")
def _coarser(side: Side, ratio: int) -> Side:
    return Side(*pool_known(side.features, side.weight, ratio))


def _onto(field: Displacement, spacing: int, new_spacing: int, finest: Side, finest_spacing: int) -> Features:
    """A field from one level's grid to another's."""
    if new_spacing % spacing == 0:
        return pool(field, new_spacing // spacing) * (spacing / new_spacing)
    ratio = new_spacing // finest_spacing
    return resize(field, tuple(-(-n // ratio) for n in finest.weight.shape[1:4]), spacing / new_spacing)


_ADAM = optax.scale_by_adam()


def _descend(
    found: Displacement,
    base: Features,
    sides: list[Side],
    level: Level,
    settings: Refinement,
    progress: Callable[..., None] | None,
) -> Displacement:
    """The steps of a level; `found` is on its grid, `base` on the finest and is not changed but added to."""
    ratio, state = level.spacing // settings.levels[-1].spacing, (found, _ADAM.init(found))
    fixed, moving = (_coarser(side, ratio) for side in sides)
    base = pool(base, ratio) / ratio
    rates = level.rate * (1 + np.cos(np.pi * np.arange(level.steps) / level.steps)) / 2
    for piece in rates.astype(np.float32).reshape(-1, settings.refresh):
        state, loss = _steps(
            state, base, fixed, moving, piece, np.float32(settings.lam), diffeomorphic=settings.diffeomorphic
        )
        if progress is not None:
            progress(loss=float(loss))
    return _control(state[0])


@jax.jit
def _control(values: Displacement) -> Displacement:
    """The field of a control grid: smoothed three times, nearly a Gaussian of 1.4 voxels, as in ConvexAdam."""
    return smooth(values, 3)


@partial(jax.jit, static_argnames="diffeomorphic", donate_argnums=0)
def _steps(
    state: tuple, base: Displacement, fixed: Side, moving: Side, rates: Array, lam: Scalar, *, diffeomorphic: bool
) -> tuple[tuple, Scalar]:
    """Adam steps of the given rates about one linearisation, and the loss before them."""

    def fields(values: Displacement) -> tuple[Displacement, Displacement]:
        """What is regularised and what warps."""
        total = base + _control(values)
        return total, exponential(total) if diffeomorphic else total

    about = fields(state[0])[1]
    quadratic = linearise(fixed.features, moving.features, about)
    weight = (fixed.weight * warp(moving.weight, about, padding="zero"))[0, ..., 0]
    weight /= jnp.maximum(jnp.sum(weight), 1) * fixed.features.shape[-1]

    def loss(values: Displacement) -> Scalar:
        total, field = fields(values)
        return jnp.sum(weight * evaluate(quadratic, field - about)) + lam * gradient_l2(total)

    def step(state: tuple, rate: Scalar) -> tuple[tuple, Scalar]:
        values, moments = state
        value, gradient = jax.value_and_grad(loss)(values)
        updates, moments = _ADAM.update(gradient, moments)
        return (values - rate * updates, moments), value

    state, losses = lax.scan(step, state, rates)
    return state, losses[0]


@partial(jax.jit, static_argnames="rounds")
def _logarithm(displacement: Displacement, *, rounds: int = 8) -> Displacement:
    """A velocity whose exponential comes near the displacement (Bossa and Olmos, 2008).

    What remains, the displacement after the inverse of the exponential, is smoothed and added: a field that folds has
    no logarithm, and a smooth velocity takes its place.
    """

    def add_rest(_: Array, velocity: Displacement) -> Displacement:
        return velocity + smooth(compose(displacement, exponential(-velocity)))

    return lax.fori_loop(0, rounds, add_rest, jnp.zeros_like(displacement))
