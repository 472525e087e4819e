"""SyN with mutual information (ANTsPy, extra `baselines`), evaluated without training.

python -m f3r_jax.main --config=configs/syn.py
    on the test cases of the phantom that `configs/mrb.py` describes.
python -m f3r_jax.main --config=configs/syn.py:paper --config.data.root=/data/pairs
    at the paper's size; the paper gives 97 s a pair on a CPU.
"""

from ml_collections import ConfigDict

from f3r_jax.config import syn_config


def get_config(option: str = "") -> ConfigDict:
    return syn_config(option=option)
