"""F3RNet-MRB trained on synthetic pairs with known displacement, in order to register contrasts not used in training.

Each step creates a pair on the device: an anatomy of the phantom or random shapes, two random motions and two random
contrasts (CT-like, MR-like or any). Over the first `synthesis.curriculum_steps` steps, pairs become more varied: they
start with a CT, a T2-weighted MR and small motions. The loss compares noise-free contrasts that both sides share.
Validation and test cases are those of the phantom, whose contrasts the training varies at random.

python -m f3r_jax.main --config=configs/synthetic.py
    64 x 48 x 48 voxels of 4.8 mm, 40,000 steps. It takes more than a night on two cores; an interrupted run resumes.
"""

from ml_collections import ConfigDict

from f3r_jax.config import synthetic_config


def get_config(option: str = "") -> ConfigDict:
    return synthetic_config(option=option, name="f3rnet", variant="mrb", lam=0.3)
