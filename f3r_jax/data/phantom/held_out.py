"""Protocols of the phantom that no training uses by default, to test a network on contrasts that it has never seen.

They must be asked for by name, and `data/synthesis` does not use them. The intensities are approximate ones of typical
protocols: HU for CT, arbitrary units for MR, one for each tissue of `appearance.TISSUES`.
"""

PHASES = {"arterial": "late arterial contrast phase"}
# sequence: the factor of the fat part of its signal
SEQUENCES = {
    "diffusion": 0.08,  # b = 500 s/mm^2: spleen, kidneys and cord are bright, vessels dark
    "hepatobiliary": 0.08,  # T1-weighted, 20 minutes after gadoxetate: liver and bile are bright, vessels dark
}
# tissue: arterial, diffusion, hepatobiliary
_INTENSITIES = {
    "air": (-1000, 0, 0),
    "skin": (12, 120, 320),
    "fat": (-100, 300, 900),
    "muscle": (56, 110, 420),
    "lung": (-840, 20, 40),
    "heart": (180, 90, 400),
    "blood": (300, 30, 320),
    "cortical": (620, 20, 40),
    "marrow": (220, 300, 600),
    "disc": (78, 250, 360),
    "fluid": (10, 260, 170),
    "cord": (36, 520, 330),
    "artery": (310, 25, 330),
    "vein": (60, 35, 330),
    "liver": (72, 190, 900),
    "tumour": (105, 520, 350),
    "necrosis": (28, 240, 230),
    "cyst": (8, 220, 160),
    "spleen": (135, 560, 400),
    "cortex": (230, 480, 620),
    "medulla": (70, 430, 700),
    "urine": (10, 250, 500),
    "bile": (9, 240, 1100),
    "bowel": (95, 330, 450),
    "chyme": (22, 200, 250),
    "stool": (30, 120, 450),
    "gas": (-950, 10, 15),
    "pancreas": (115, 300, 520),
}
INTENSITIES = {
    name: {tissue: values[column] for tissue, values in _INTENSITIES.items()}
    for column, name in enumerate((*PHASES, *SEQUENCES))
}
