"""F3RNet-MRB trained on synthetic pairs of known displacement, so that it registers contrasts that it has never seen.

Each step draws a pair on the device: an anatomy of the phantom or random shapes, two random motions, two random
contrasts (CT-like, MR-like or any). In the first `synthesis.curriculum_steps` steps pairs grow from a CT, a T2-weighted
MR and small motions to all of that. The loss compares contrasts without noise that both sides share. Validation and
test cases are the phantom's, whose contrasts are not among those of the training.

python -m f3r_jax.main --config=configs/synthetic.py
    64 x 48 x 48 voxels of 4.8 mm, 40,000 steps: a night and more on two cores. It resumes after a kill.
"""

from ml_collections import ConfigDict

from f3r_jax.config import synthetic_config


def get_config(option: str = "") -> ConfigDict:
    return synthetic_config(option=option, name="f3rnet", variant="mrb", lam=0.3)
