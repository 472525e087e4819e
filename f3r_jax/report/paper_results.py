"""The results printed in the paper: its Tables 1, 2 and 3, as typed.

Systems have the names that configs use: `model.variant` for the seven F3RNets, `model.name` for the rest; "moving" is
the pair before registration. ASD in mm and Dice in percent are (mean, standard deviation) over the paper's ten test
cases. Seconds are those of its Titan X and of its CPU. None is a dash in the paper.
"""

from typing import NamedTuple

MOVING = "moving"
ROIS = ("liver", "spleen", "kidney")
DIRECTIONS = {"ct_to_mr": "CT to MR", "mr_to_ct": "MR to CT"}
TABLE_NUMBERS = {"ct_to_mr": 2, "mr_to_ct": 3}
FIGURE_NUMBERS = {"ct_to_mr": 4, "mr_to_ct": 5}

FAIM_PUBLISHED = 233_683  # parameters of the network that Kuang and Schmah published; the paper prints another number

Spread = tuple[float, float]


class Printed(NamedTuple):
    """A row of Table 2 or 3."""

    label: str
    asd_mm: tuple[Spread, Spread, Spread]  # of ROIS, as is dice
    dice: tuple[Spread, Spread, Spread]
    parameters: float | None = None  # millions
    seconds_gpu: float | None = None
    seconds_cpu: float | None = None


# Table 1: the parts whose 3x3x3 convolutions are factorised (full-resolution stream, encoder, decoder), more MRBs.
TABLE_1 = {
    "wo_f3d": (False, False, False, False),
    "w_f3d": (True, True, True, False),
    "enc": (False, True, False, False),
    "dec": (False, False, True, False),
    "fr": (True, False, False, False),
    "ms": (True, True, True, False),
    "mrb": (True, True, True, True),
}

# fmt: off
_MOVING = Printed("Moving", ((4.95, 0.82), (1.97, 0.52), (2.01, 0.36)), ((77.18, 4.13), (78.24, 3.21), (80.14, 3.17)))

# Table 2, CT to MR, in the order of its rows.
TABLE_2 = {
    MOVING: _MOVING,
    "syn": Printed("SyN", ((4.81, 0.79), (1.54, 0.63), (1.92, 0.41)), ((79.18, 4.37), (80.21, 3.41), (82.91, 3.08)),
                   None, None, 97),
    "voxelmorph1": Printed("VM-1", ((3.98, 0.74), (1.42, 0.54), (1.75, 0.52)),
                           ((82.39, 4.11), (82.83, 2.68), (82.34, 2.97)), 0.260, 1.32, 21),
    "voxelmorph2": Printed("VM-2", ((3.92, 0.53), (1.47, 0.37), (1.72, 0.49)),
                           ((84.17, 3.57), (82.76, 2.98), (83.51, 3.36)), 0.300, 1.33, 23),
    "faim": Printed("FAIM", ((3.88, 0.73), (1.51, 0.63), (1.66, 0.41)),
                    ((84.51, 3.76), (81.99, 2.84), (83.12, 3.24)), 0.217, 1.29, 20),
    "wo_f3d": Printed("F3RNet-w/o F3D", ((2.19, 0.37), (1.28, 0.39), (1.37, 0.38)),
                      ((86.65, 3.42), (85.39, 2.75), (83.58, 3.18)), 0.746, 2.31, 26),
    "w_f3d": Printed("F3RNet-w/ F3D", ((2.63, 0.52), (1.36, 0.86), (1.41, 0.72)),
                     ((85.16, 4.19), (84.33, 2.23), (82.98, 3.43)), 0.236, 1.22, 25),
    "dec": Printed("F3RNet-Dec", ((2.77, 0.69), (1.33, 0.69), (1.43, 0.48)),
                   ((85.87, 4.23), (84.18, 2.77), (83.06, 3.92)), 0.544, 1.93, 25),
    "enc": Printed("F3RNet-Enc", ((2.73, 0.47), (1.39, 0.52), (1.38, 0.36)),
                   ((85.32, 4.35), (84.27, 3.35), (83.11, 3.28)), 0.488, 1.79, 23),
    "fr": Printed("F3RNet-FR", ((3.82, 0.59), (1.53, 0.39), (1.56, 0.43)),
                  ((81.43, 4.27), (82.97, 3.18), (83.13, 3.52)), 0.697, 2.13, 25),
    "ms": Printed("F3RNet-MS", ((3.94, 0.75), (1.51, 0.44), (1.52, 0.67)),
                  ((82.31, 3.84), (83.06, 3.33), (82.99, 3.28)), 0.286, 1.41, 24),
    "mrb": Printed("F3RNet-MRB", ((2.17, 0.46), (1.29, 0.48), (1.34, 0.26)),
                   ((86.79, 3.18), (85.42, 2.98), (83.16, 3.43)), 0.296, 1.42, 25),
}

# Table 3, MR to CT, in the order of its rows; it has no parameters and no seconds.
TABLE_3 = {
    MOVING: _MOVING,
    "syn": Printed("SyN", ((4.73, 0.68), (1.63, 0.57), (1.99, 0.33)), ((78.36, 4.67), (78.53, 3.39), (81.38, 2.98))),
    "voxelmorph1": Printed("VM-1", ((4.02, 0.73), (1.61, 0.64), (1.95, 0.28)),
                           ((81.34, 4.06), (80.72, 3.02), (82.46, 3.07))),
    "voxelmorph2": Printed("VM-2", ((3.59, 0.67), (1.53, 0.52), (1.87, 0.36)),
                           ((83.28, 4.03), (82.81, 3.14), (83.37, 2.83))),
    "faim": Printed("FAIM", ((3.71, 0.87), (1.51, 0.63), (1.89, 0.31)),
                    ((84.33, 3.64), (81.06, 3.48), (83.44, 2.92))),
    "wo_f3d": Printed("F3RNet-w/o F3D", ((3.12, 0.59), (1.43, 0.59), (1.68, 0.42)),
                      ((85.75, 4.11), (83.02, 3.26), (84.07, 3.04))),
    "mrb": Printed("F3RNet-MRB", ((3.04, 0.65), (1.38, 0.51), (1.67, 0.35)),
                   ((85.93, 3.52), (83.47, 3.51), (84.39, 2.77))),
}
# fmt: on

TABLES = {"ct_to_mr": TABLE_2, "mr_to_ct": TABLE_3}
SYSTEMS = tuple(TABLE_2)  # the order of the rows


def paper_value(direction: str, system: str, measure: str) -> Spread | None:
    """The paper's mean and deviation of a measure such as "asd_mm/liver"; (mean, nan) of "dice/mean"."""
    row = TABLES[direction].get(system)
    score, _, roi = measure.partition("/")
    if row is None or score not in ("asd_mm", "dice"):
        return None
    spreads = dict(zip(ROIS, getattr(row, score), strict=True))
    if roi == "mean":
        return sum(mean for mean, _ in spreads.values()) / len(ROIS), float("nan")
    return spreads.get(roi)
