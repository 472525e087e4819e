"""Which network a registration uses: the named one, by default the one in the package, or none."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from f3r_jax.register import choices
from f3r_jax.register.guidance import UNGUIDED
from f3r_jax.register.pair_spec import Files
from f3r_jax.register.pipeline import Settings
from f3r_jax.workdir import weights


def with_network(settings: Settings, named: str | Path | None, files: Sequence[Files] = ()) -> Settings:
    """The settings with the checkpoint of a registration.

    The default is `weights.BUILTIN`. There is none without instance optimisation, and where more than the two scans
    takes part: labels or landmarks that drive, further sequences, excluded voxels, rigid or preserved parts. The
    network knows nothing of them, and instance optimisation after it has no coarse levels that they could act on.

    Args:
      settings: the settings without a checkpoint.
      named: a checkpoint, `choices.NO_NETWORK`, or None for the default.
      files: those of the pair, if they are known.
    """
    if named is not None:
        checkpoint = None if str(named) == choices.NO_NETWORK else Path(named)
    else:
        alone = settings.guidance == UNGUIDED and not any(each.takes_part for each in files)
        checkpoint = Path(weights.BUILTIN) if alone and settings.refine else None
    return dataclasses.replace(settings, checkpoint=checkpoint)
