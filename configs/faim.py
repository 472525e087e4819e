"""FAIM (2018): an Inception head with kernels of up to 11 voxels, followed by a short U-Net; 233,683 parameters.

Trained with the same loss and schedule as F3RNet, so that only the networks differ.

python -m f3r_jax.main --config=configs/faim.py
    On the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/faim.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data. The paper gives no lambda for its baselines; 1.5 is that of F3RNet.
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="faim", lam=0.8, paper_lam=1.5)
