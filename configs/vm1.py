"""VoxelMorph-1 (CVPR 2018): a U-Net with a last layer of 8 channels, 259,675 parameters.

Trained with the same loss and schedule as F3RNet, so that the networks alone differ.

python -m f3r_jax.main --config=configs/vm1.py
    on the phantom, as `configs/mrb.py` describes it.
python -m f3r_jax.main --config=configs/vm1.py:paper --config.data.root=/data/pairs
    the paper's setting on own data. The paper names no lambda of its own for its rivals; 1.5 is F3RNet's.
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="voxelmorph1", lam=0.8, paper_lam=1.5)
