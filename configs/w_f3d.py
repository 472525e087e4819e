"""F3RNet-w/ F3D: every convolution is factorised. It is the smallest of the seven networks (Table 1).

python -m f3r_jax.main --config=configs/w_f3d.py
    On the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/w_f3d.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data. The paper's best lambda for this network is 1.5 (Sec. 3.2).
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="f3rnet", variant="w_f3d", lam=0.8, paper_lam=1.5)
