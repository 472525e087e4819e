"""The files of a pair of scans, as tables name them, and the columns of `pairs.csv`."""

import dataclasses
from pathlib import Path

SIDES = ("fixed", "moving")
OF_A_SIDE = ("labels", "landmarks", "modality", "mask", "exclude_mask", "extra")
OF_THE_PAIR = ("rigid_mask", "preserve_mask", "labels_drive", "split", "name")
COLUMNS = (*SIDES, *(f"{side}_{what}" for what in OF_A_SIDE for side in SIDES), *OF_THE_PAIR)


@dataclasses.dataclass(frozen=True)
class ScanFiles:
    """The files of one scan."""

    modality: str  # "ct" | "mr"
    image: Path
    labels: Path | None = None
    landmarks: Path | None = None
    stated: bool = True  # whether the table gives the modality; if not, it is the default of the column
    mask: Path | None = None
    exclude: Path | None = None
    extra: tuple[Path, ...] = ()
    rigid: Path | None = None
    preserve: Path | None = None


@dataclasses.dataclass(frozen=True)
class PairFiles:
    """Two scans of the same body part, of any modalities; `split` is None if the data do not define it."""

    name: str
    fixed: ScanFiles
    moving: ScanFiles
    split: str | None = None
    labels_drive: tuple[int, ...] | None = None

    def ordered(self, direction: str) -> tuple[ScanFiles, ScanFiles]:
        """The moving and the fixed scan: by direction for a CT and an MR, else as in the table.

        `direction` is "ct_to_mr" or "mr_to_ct".
        """
        moving = direction.partition("_")[0]
        if self.moving.modality == self.fixed.modality or self.moving.modality == moving:
            return self.moving, self.fixed
        return self.fixed, self.moving
