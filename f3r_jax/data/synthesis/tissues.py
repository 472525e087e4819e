"""The tissues of a label map, by index, and their intensities in CT and MR."""

from typing import NamedTuple


class Tissue(NamedTuple):
    """CT values in HU by phase, MR signals, and the share of the MR signal that comes from fat."""

    venous: float
    plain: float
    t2: float
    t1: float
    fat: float = 0.0


# A label is the position in this table; 0 is air. The names are those of the phantom's parts.
TISSUES = {
    "air": Tissue(-1000, -1000, 0, 0),
    "skin": Tissue(10, 10, 200, 300, 0.3),
    "fat": Tissue(-100, -100, 840, 900, 0.97),
    "muscle": Tissue(60, 52, 150, 380, 0.03),
    "lung": Tissue(-840, -850, 40, 40),
    "heart": Tissue(110, 40, 220, 350),
    "blood": Tissue(150, 42, 70, 250),
    "cortical": Tissue(620, 610, 50, 40),
    "marrow": Tissue(230, 210, 380, 620, 0.55),
    "disc": Tissue(85, 75, 480, 350),
    "fluid": Tissue(12, 8, 1050, 150),
    "cord": Tissue(40, 32, 360, 330),
    "artery": Tissue(155, 42, 50, 300),
    "vein": Tissue(170, 42, 90, 280),
    "liver": Tissue(112, 58, 270, 540, 0.04),
    "tumour": Tissue(65, 42, 470, 370),
    "necrosis": Tissue(30, 25, 760, 220),
    "cyst": Tissue(8, 6, 1080, 150),
    "spleen": Tissue(122, 48, 440, 360),
    "cortex": Tissue(185, 35, 420, 410),
    "medulla": Tissue(145, 32, 570, 310),
    "urine": Tissue(20, 4, 980, 140),
    "bile": Tissue(8, 10, 1050, 260),
    "bowel": Tissue(85, 36, 300, 350),
    "chyme": Tissue(22, 18, 880, 240),
    "stool": Tissue(30, 30, 330, 450),
    "gas": Tissue(-950, -950, 15, 15),
    "pancreas": Tissue(95, 40, 330, 570, 0.05),
}
