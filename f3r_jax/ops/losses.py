"""The training loss: similarity + lambda * gradient_l2 (paper Eq. 3), with further terms for synthetic pairs.

For real pairs and the phantom the similarity is mind_l1 (Eq. 4) or the difference of pooled descriptors. Synthetic
pairs have a known ground truth: contrasts that both sides share, and the displacement between them.
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
from f3r_jax.ops.shapes import Displacement, Scalar, Volume, total
from f3r_jax.ops.warp import warp

POOLED = (2, 4)  # edges in voxels of the cubes of `pooled_mind`
POOLED_WEIGHT = 2.0  # makes a lambda for "mind" suitable for "pooled_mind"


class Batch(NamedTuple):
    """Volumes of one step, with intensities in [0, 1]."""

    moving: Volume
    fixed: Volume


class GroundTruth(NamedTuple):
    """Ground truth of a batch of synthetic pairs."""

    displacement: Displacement  # voxels
    clean_moving: Float[jax.Array, "b x y z k"]  # contrasts that both sides share, without noise
    clean_fixed: Float[jax.Array, "b x y z k"]


class LabelMaps(NamedTuple):
    """One-hot labels of a batch: one channel per organ."""

    moving: Float[jax.Array, "b X Y Z k"]
    fixed: Float[jax.Array, "b x y z k"]


class Prepared(NamedTuple):
    """Input of a training step: volumes for the network, volumes for the loss, and the ground truth.

    The network may be given a part of the volumes. The loss then compares this part of the fixed volume with the whole
    moving volume, because the displacement also points to places outside the part.
    """

    given: Batch
    compared: Batch
    truth: GroundTruth | None
    start: Float[jax.Array, "b 1 1 1 3"] | None = None  # the moving volume's voxel at which the part begins; None: 0
    labels: LabelMaps | None = None


class Objective(NamedTuple):
    """The terms of the loss, as in `config.loss`; lambda is an argument of the step."""

    mind: str  # preset of `ops.mind`
    similarity: str = "mind"  # a key of SIMILARITIES
    epe: float = 0.0  # weight of the squared end-point error in voxels
    second_similarity: str = ""  # a key of SIMILARITIES that replaces the first one; "": none
    second_from: int = 0  # the first step, counted from 0, that uses the second similarity
    labels_weight: float = 0.0  # of the mean over the labels of 1 - Dice

    @property
    def needs_truth(self) -> bool:
        """Whether pairs with ground truth are needed."""
        return "clean" in (self.similarity, self.second_similarity) or self.epe > 0


@partial(jax.jit, static_argnames="preset")
def mind_l1(fixed: Volume, warped: Volume, *, preset: str, mask: Volume | None = None) -> Scalar:
    """Mean absolute difference of the MIND descriptors over voxels and channels (Eq. 4).

    With a mask, (b x y z 1) weights in [0, 1], it is the weighted mean over voxels, or 0 if all weights are 0. A
    descriptor depends on voxels around its own, so voxels close to unknown ones need a weight of 0 as well.
    """
    difference = jnp.abs(mind(fixed, preset=preset) - mind(warped, preset=preset))
    if mask is None:
        return jnp.mean(difference)
    return jnp.sum(mask * difference) / (jnp.maximum(jnp.sum(mask), TINY) * difference.shape[-1])


def gradient_l2(displacement: Displacement) -> Scalar:
    """Mean square of the forward differences of the displacement (voxels), averaged over the axes, as in VoxelMorph.

    An axis of one voxel has no differences and counts as zero.
    """
    return total(jnp.sum(d**2) / max(d.size, 1) for d in forward_differences(displacement)) / 3


def soft_dice_loss(fixed: Volume, warped: Volume) -> Scalar:
    """The mean of 1 - Dice over the channels that the fixed labels contain; 0 if they contain none.

    Dice is 2 sum(f w) / (sum(f^2) + sum(w^2)), over the voxels of each example (Milletari et al., 2016).
    """
    axes = (1, 2, 3)
    sizes = jnp.sum(fixed**2, axes) + jnp.sum(warped**2, axes)
    dice = 2 * jnp.sum(fixed * warped, axes) / jnp.maximum(sizes, 1)
    present = jnp.any(fixed > 0, axes)
    return jnp.sum(jnp.where(present, 1 - dice, 0)) / jnp.maximum(jnp.sum(present), 1)


def _mind(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    return mind_l1(batch.fixed, warp(batch.moving, places), preset=objective.mind)


def _pooled_mind(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    """Mean squared difference of pooled descriptors; those of the moving volume are warped.

    Descriptors are averaged over cubes of 2 and of 4 voxels, as in `instance_optimisation`. Warping an image smooths
    its noise. Here no image is warped, so the network cannot lower the loss in this way.
    """
    fixed, moving = (mind(volume, preset=objective.mind) for volume in (batch.fixed, batch.moving))
    differences = [pool(fixed, size) - warp(pool(moving, size), pool(places, size) / size) for size in POOLED]
    return POOLED_WEIGHT * total(jnp.mean(difference**2) for difference in differences) / len(POOLED)


def _mind_and_pooled(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    """The sum of both: `mind` alone finds too short motions, `pooled_mind` alone loses detail."""
    return total(similarity(objective, batch, truth, places) for similarity in (_mind, _pooled_mind))


def _clean(objective: Objective, batch: Batch, truth: GroundTruth | None, places: Displacement) -> Scalar:
    """Mean squared difference of the shared contrasts, scaled to about the size of mind_l1."""
    if truth is None:
        raise ValueError("the similarity is 'clean'; expected pairs with ground truth")
    return 10 * jnp.mean((truth.clean_fixed - warp(truth.clean_moving, places)) ** 2)


SIMILARITIES: dict[str, Callable[[Objective, Batch, GroundTruth | None, Displacement], Scalar]] = {
    "mind": _mind,
    "pooled_mind": _pooled_mind,
    "mind_and_pooled": _mind_and_pooled,
    "clean": _clean,
}


def _similarity(objective: Objective, prepared: Prepared, places: Displacement, step: jax.Array | int) -> Scalar:
    """The similarity that is used at this step. The other one is computed only under `vmap`."""
    given = (prepared.compared, prepared.truth, places)
    first = partial(SIMILARITIES[objective.similarity], objective)
    if not objective.second_similarity:
        return first(*given)
    second = partial(SIMILARITIES[objective.second_similarity], objective)
    return jax.lax.cond(step >= objective.second_from, second, first, *given)


def terms(
    objective: Objective, prepared: Prepared, u: Displacement, lam: Scalar, step: jax.Array | int = 0
) -> dict[str, Scalar]:
    """The loss of a predicted displacement and its terms: "loss", "similarity", "smoothness" and, if known, "epe".

    With a weight of the labels, "labels" is the soft Dice loss.
    "epe" is the mean squared end-point error in squared voxels. `step` counts from 0 and selects the similarity.
    """
    truth = prepared.truth
    places = u if prepared.start is None else u + prepared.start
    values = {
        "similarity": _similarity(objective, prepared, places, step),
        "smoothness": gradient_l2(u),
    }
    loss = values["similarity"] + lam * values["smoothness"]
    if prepared.labels is not None:
        values["labels"] = soft_dice_loss(prepared.labels.fixed, warp(prepared.labels.moving, places))
        loss += objective.labels_weight * values["labels"]
    if truth is not None:
        values["epe"] = jnp.mean(jnp.sum((u - truth.displacement) ** 2, axis=-1))
        loss += objective.epe * values["epe"]
    return {"loss": loss, **values}
