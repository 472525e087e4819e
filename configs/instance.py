"""Instance optimisation alone: optimises the displacement of each test case with MIND, without network or training.

python -m f3r_jax.main --config=configs/instance.py
    On the phantom's test cases, as a baseline for the networks. On one busy core it takes 3 to 7 s per pair.
    Mean Dice 91.2 % (78.5 % before), end-point error 3.5 mm (11.9 mm before). It is better than the networks after
    4,000 steps.
python -m f3r_jax.main --config=configs/instance.py:paper --config.data.root=/data/pairs
    On your own data, with the settings of `python -m f3r_jax.register`.
"""

from ml_collections import ConfigDict

from f3r_jax.config import instance_config


def get_config(option: str = "") -> ConfigDict:
    return instance_config(option=option)
