"""What became of labels, landmarks and parts that took part: scores apart from the others, and errors."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from f3r_jax.ops.instance_optimisation import Level, Refinement, optimise
from f3r_jax.ops.restraints import sample
from f3r_jax.ops.sources import coarser, mind_source
from f3r_jax.register import parts
from f3r_jax.register.parts import PartReport
from f3r_jax.register.sources import Guides
from f3r_jax.register.volumes import WorkingVolumes

GROUPS = 8  # of landmarks, each left out once; with fewer landmarks, each is left out alone
# Spacing and steps of the levels. One run takes 4 % of the steps of all levels, weighted by their voxels.
LEVELS, FINEST = ((16, 40), (8, 40), (4, 20)), 4


@dataclasses.dataclass(frozen=True)
class GuidanceReport:
    """The labels that drove, the errors of landmarks that were left out in mm, and the parts."""

    driving: tuple[int, ...] = ()
    left_out: tuple[float, ...] = ()
    parts: Sequence[PartReport] = ()

    def summary(self) -> dict[str, object]:
        """The entries of `summary.json`; none where nothing took part."""
        values: dict[str, object] = {}
        if self.driving:
            values["driving_labels"] = list(self.driving)
        if self.left_out:
            values["landmarks_left_out_mm"] = {"mean": float(np.mean(self.left_out)), "each": list(self.left_out)}
        if self.parts:
            values["parts"] = [dict(each) for each in self.parts]
        return values

    def note(self, stop: Callable[[str, str], None]) -> None:
        """Reports each part and the landmarks; `stop` ends a stage with a name and a line."""
        for each in self.parts:
            stop("parts", parts.line(each))


def leave_one_out(
    volumes: WorkingVolumes, known: Guides, settings: Refinement, start: np.ndarray | None
) -> tuple[float, ...]:
    """The distance of each landmark in mm when it does not pull; empty without at least two landmarks that pull.

    Instance optimisation is repeated on its coarse levels, from the affine step or the network's displacement. The
    affine step itself is not repeated.
    """
    landmarks = known.restraints.landmarks
    if landmarks is None or len(landmarks.used) < 2:
        return ()
    masks = (volumes.fixed_mask, volumes.moving_mask)
    own = mind_source(volumes.fixed, volumes.moving, *masks, preset=settings.mind, spacing=FINEST, weight=known.weight)
    ratio = FINEST // settings.levels[-1].spacing
    compared = (own, *(coarser(source, ratio) for source in known.further))
    quick = dataclasses.replace(
        settings, levels=tuple(Level(spacing, steps, settings.levels[0].rate) for spacing, steps in LEVELS)
    )
    first = None if start is None else jnp.asarray(start)[None]
    group = np.arange(len(landmarks.used)) % GROUPS
    errors = np.zeros(len(group))
    for each in np.unique(group):
        used = landmarks._replace(used=landmarks.used * (group != each))
        pull = known.restraints._replace(landmarks=used)
        u = optimise(compared, volumes.grid.shape, start=first, restraints=pull, settings=quick)
        away = landmarks.fixed + sample(u, landmarks.fixed) - landmarks.moving
        errors[group == each] = np.asarray(landmarks.edge * jnp.linalg.norm(away, axis=-1))[group == each]
    return tuple(map(float, errors))


def separate(scores: dict, organs: Mapping[str, Sequence[int]], driving: Sequence[int]) -> None:
    """Splits the mean Dice of a stage: `mean_dice_driving` of labels that drove, `mean_dice` of the others.

    Labels that drive agree because they were pulled together, which proves nothing.
    """
    if not driving or "organs" not in scores:
        return
    means = {}
    for key, drove in (("mean_dice_driving", True), ("mean_dice", False)):
        found = [
            scores["organs"][name]["dice"]
            for name, values in organs.items()
            if bool(set(values) & set(driving)) == drove
        ]
        known = [value for value in found if not np.isnan(value)]
        means[key] = float(np.mean(known)) if known else float("nan")
    scores |= means


def table_lines(summary: Mapping) -> list[str]:
    """Lines of text for the terminal; parts are reported when they are measured."""
    return [f"{name}: {text}" for name, text in facts(summary) if name not in ("rigid part", "preserve part")]


def facts(summary: Mapping) -> list[tuple[str, str]]:
    """Rows of the page: a name and a text."""
    rows = []
    if "driving_labels" in summary:
        values, dice = ", ".join(map(str, summary["driving_labels"])), summary.get("mean_dice_driving")
        scored = "not scored" if dice is None else f"mean Dice {dice:.1f} %; the mean of all is of the others"
        rows.append(("labels that drove", f"{values}, {scored}"))
    if "landmarks_left_out_mm" in summary:
        error = summary["landmarks_left_out_mm"]["mean"]
        rows.append(("landmarks that drove", f"{error:.2f} mm when left out, on coarse levels"))
    for entry in summary.get("parts", ()):
        name, _, text = parts.line(entry).partition(", ")
        rows.append((name, text))
    return rows
