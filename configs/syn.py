"""SyN with mutual information (ANTsPy, extra `baselines`), evaluated without training.

python -m f3r_jax.main --config=configs/syn.py
    On the test cases of the phantom, as described in `configs/mrb.py`.
python -m f3r_jax.main --config=configs/syn.py:paper --config.data.root=/data/pairs
    On your own data, at the paper's size. The paper reports 97 s per pair on a CPU.
"""

from ml_collections import ConfigDict

from f3r_jax.config import syn_config


def get_config(option: str = "") -> ConfigDict:
    return syn_config(option=option)
