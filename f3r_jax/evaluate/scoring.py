"""Scores a registered case and its controls against the ground truth."""

from collections.abc import Mapping, Sequence

import numpy as np

from f3r_jax.common.arrays import LabelMap, VoxelField
from f3r_jax.data.cases import Case
from f3r_jax.evaluate import controls, metrics
from f3r_jax.evaluate.inference import Registration, warp_labels
from f3r_jax.evaluate.predictions import ControlFields
from f3r_jax.evaluate.scores import CaseScores, ControlScores, FieldScores

FOLDING_LIMIT = 0.5  # percent of voxels; a field that folds more is not a plausible deformation
FOLDING_ADVICE = "raise loss.lam or lower optim.learning_rate"

Organs = Mapping[str, Sequence[int]]  # label values by organ


def score(
    case: Case, result: Registration, organs: Organs, *, seconds: float, control_scores: ControlScores | None = None
) -> CaseScores:
    """Scores of one case before and after a registration that took so many seconds."""
    return CaseScores(
        seconds,
        metrics.folding_percent(result.displacement),
        metrics.sd_log_jacobian(result.displacement),
        score_field(case, result.displacement, result.warped_labels, organs),
        score_field(case, np.zeros_like(result.displacement), case.moving_labels, organs),
        control_scores,
    )


def score_controls(case: Case, prediction: VoxelField, fields: ControlFields, organs: Organs) -> ControlScores:
    """Scores of one case with the fields of its controls, and the deviation of its prediction from its mean field."""
    mean_field, other_pair = fields.mean_field(case.name), fields.other_pair(case.name)
    mask = controls.inside_organs(case.fixed_labels, organs)
    return ControlScores(
        score_field(case, mean_field, warp_labels(case.moving_labels, mean_field), organs),
        score_field(case, other_pair, warp_labels(case.moving_labels, other_pair), organs),
        fields.deviations(case, prediction, mean_field, mask),
    )


def score_field(case: Case, displacement: VoxelField, warped_labels: LabelMap | None, organs: Organs) -> FieldScores:
    """Scores of one displacement of a case, and of the moving labels that it warps; None without ground truth."""
    of_organs = epe_mm = tre_mm = None
    if case.fixed_labels is not None and warped_labels is not None:
        of_organs = metrics.organ_scores(case.fixed_labels, warped_labels, organs=organs, spacing=case.spacing)
    if case.displacement is not None:
        inside = controls.inside_organs(case.fixed_labels, organs)
        epe_mm = metrics.end_point_error_mm(displacement, case.displacement, case.spacing, inside)
    if case.fixed_landmarks is not None and case.moving_landmarks is not None:
        fixed, moving = (points * case.spacing for points in (case.fixed_landmarks, case.moving_landmarks))
        affine = np.diag([*case.spacing, 1.0])
        errors = metrics.target_registration_error(fixed, moving, displacement, affine=affine)
        tre_mm = float(errors.mean())
    return FieldScores(of_organs, epe_mm, tre_mm)
