"""F3RNet-FR: only the full-resolution stream is factorised (Table 1).

python -m f3r_jax.main --config=configs/fr.py
    On the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/fr.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data. The paper's best lambda for this network is 1.5 (Sec. 3.2).
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    return network_config(option=option, name="f3rnet", variant="fr", lam=0.8, paper_lam=1.5)
