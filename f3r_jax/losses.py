"""The training loss: similarity + lambda * gradient_l2 (paper Eq. 3), and further terms where the truth is known.

On real pairs and the phantom the similarity is mind_l1 (Eq. 4), or the difference of pooled descriptors. Synthetic
pairs can also be compared in contrasts that both sides share, and with the displacement that made them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from f3r_jax.ops.fields import forward_differences
from f3r_jax.ops.mind import TINY, mind
from f3r_jax.ops.pyramid import pool
from f3r_jax.ops.warp import warp
from f3r_jax.shapes import Displacement, Scalar, Volume

POOLED = (2, 4)  # edges in voxels of the cubes of `pooled_mind`
POOLED_WEIGHT = 2.0  # so that the lambda of "mind" suits "pooled_mind" too


class Batch(NamedTuple):
    """Volumes of one step, in [0, 1]."""

    moving: Volume
    fixed: Volume


class GroundTruth(NamedTuple):
    """What is known of a batch of synthetic pairs."""

    displacement: Displacement  # voxels
    clean_moving: Float[jax.Array, "b x y z k"]  # contrasts that both sides share, without noise
    clean_fixed: Float[jax.Array, "b x y z k"]


class Prepared(NamedTuple):
    """What a step works on: what the network is given, what the loss compares, and what is known of the pairs.

    The network may be given a part of the volumes. The loss then compares this part of the fixed volume, but with the
    whole moving one, as the displacement points to places outside the part.
    """

    given: Batch
    compared: Batch
    truth: GroundTruth | None
    start: Float[jax.Array, "b 1 1 1 3"] | None = None  # voxel of the moving volume at which the part begins; None: 0


class Objective(NamedTuple):
    """The terms of the loss by name, as `config.loss` has them; lambda is an argument of the step."""

    mind: str  # preset of `ops.mind`
    similarity: str = "mind"  # a key of SIMILARITIES
    epe: float = 0.0  # weight of the squared end-point error in voxels
    second_similarity: str = ""  # a key of SIMILARITIES that takes over; "": none
    second_from: int = 0  # the first step, counted from 0, that it is used in

    @property
    def needs_truth(self) -> bool:
        """Whether pairs of known displacement are needed."""
        return "clean" in (self.similarity, self.second_similarity) or self.epe > 0


@partial(jax.jit, static_argnames="preset")
def mind_l1(fixed: Volume, warped: Volume, *, preset: str, mask: Volume | None = None) -> Scalar:
    """Mean absolute difference of the MIND descriptors over voxels and channels (Eq. 4).

    With a mask, (b x y z 1) weights in [0, 1], it is the weighted mean over voxels, and 0 where no voxel has weight. A
    descriptor sees a few voxels beyond its own: those that close to unknown ones need a weight of 0 as well.
    """
    difference = jnp.abs(mind(fixed, preset=preset) - mind(warped, preset=preset))
    if mask is None:
        return jnp.mean(difference)
    return jnp.sum(mask * difference) / (jnp.maximum(jnp.sum(mask), TINY) * difference.shape[-1])


def gradient_l2(displacement: Displacement) -> Scalar:
    """Mean square of the forward differences of the field in voxels, averaged over the three axes, as VoxelMorph does.

    An axis of one voxel has no differences and counts as zero.
    """
    return sum(jnp.sum(d**2) / max(d.size, 1) for d in forward_differences(displacement)) / 3


def _mind(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    return mind_l1(batch.fixed, warp(batch.moving, places), preset=objective.mind)


def _pooled_mind(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    """Mean squared difference of pooled descriptors, those of the moving volume warped, as in `refine`.

    Descriptors are averaged over cubes of 2 and of 4 voxels. The network can't lower it by what the interpolation of a
    warped image does to the image's noise.
    """
    fixed, moving = (mind(volume, preset=objective.mind) for volume in (batch.fixed, batch.moving))
    differences = [pool(fixed, size) - warp(pool(moving, size), pool(places, size) / size) for size in POOLED]
    return POOLED_WEIGHT * sum(jnp.mean(difference**2) for difference in differences) / len(POOLED)


def _mind_and_pooled(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    """The sum of both: `mind` alone finds too short motions, `pooled_mind` alone loses detail."""
    return sum(similarity(objective, batch, truth, places) for similarity in (_mind, _pooled_mind))


def _clean(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    """Mean squared difference of the shared contrasts, of about the size of mind_l1."""
    return 10 * jnp.mean((truth.clean_fixed - warp(truth.clean_moving, places)) ** 2)


SIMILARITIES: dict[str, Callable[[Objective, Batch, GroundTruth | None, Displacement], Scalar]] = {
    "mind": _mind,
    "pooled_mind": _pooled_mind,
    "mind_and_pooled": _mind_and_pooled,
    "clean": _clean,
}


def _similarity(objective: Objective, prepared: Prepared, places: Displacement, step: jax.Array | int) -> Scalar:
    """The similarity that the step uses. Only this one is computed, unless steps are vmapped."""
    given = (prepared.compared, prepared.truth, places)
    first = partial(SIMILARITIES[objective.similarity], objective)
    if not objective.second_similarity:
        return first(*given)
    second = partial(SIMILARITIES[objective.second_similarity], objective)
    return jax.lax.cond(step >= objective.second_from, second, first, *given)


def terms(
    objective: Objective, prepared: Prepared, u: Displacement, lam: Scalar, step: jax.Array | int = 0
) -> dict[str, Scalar]:
    """The loss of a predicted displacement and its terms: "loss", "similarity", "smoothness" and perhaps "epe".

    "epe" is the mean squared end-point error in voxels. `step` counts from 0; it chooses between two similarities.
    """
    truth = prepared.truth
    places = u if prepared.start is None else u + prepared.start
    values = {
        "similarity": _similarity(objective, prepared, places, step),
        "smoothness": gradient_l2(u),
    }
    loss = values["similarity"] + lam * values["smoothness"]
    if truth is not None:
        values["epe"] = jnp.mean(jnp.sum((u - truth.displacement) ** 2, axis=-1))
        loss += objective.epe * values["epe"]
    return {"loss": loss, **values}
