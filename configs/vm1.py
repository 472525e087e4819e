"""VoxelMorph-1 (CVPR 2018): a U-Net with a last layer of 8 channels, 259,675 parameters.

Trained with the same loss and schedule as F3RNet. It learns the pair more slowly per step, but a step takes a quarter
of the CPU time, so on the phantom it has 10,000 steps, as VoxelMorph-2.

python -m f3r_jax.main --config=configs/vm1.py
    On the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/vm1.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data. The paper gives no lambda for its baselines; 1.5 is that of F3RNet.
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="voxelmorph1", lam=0.8, paper_lam=1.5, steps=10_000)
