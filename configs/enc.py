"""F3RNet-Enc: only the encoder of the multi-scale stream is factorised (Table 1).

python -m f3r_jax.main --config=configs/enc.py
    On the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/enc.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data. The paper's best lambda for this network is 2 (Sec. 3.2).
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="f3rnet", variant="enc", lam=0.8, paper_lam=2.0)
