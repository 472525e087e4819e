"""VoxelMorph-2 (CVPR 2018): VoxelMorph-1 with more channels at the end, 300,547 parameters.

Trained with the same loss and schedule as F3RNet. It learns the pair more slowly per step, but a step takes half
of the CPU time, so on the phantom it has 10,000 steps. They take a third more than the 4,000 of F3RNet-MRB.

python -m f3r_jax.main --config=configs/vm2.py
    On the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/vm2.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data. The paper gives no lambda for its baselines; 1.5 is that of F3RNet.
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="voxelmorph2", lam=0.8, paper_lam=1.5, steps=10_000)
