"""Instance optimisation alone: the displacement of each test case is optimised on MIND, without a network or training.

python -m f3r_jax.main --config=configs/instance.py
    on the phantom's test cases, as a baseline of the networks. On two cores half a second per pair.
    Mean Dice 90.3 % (78.5 before), end-point error 4.5 mm (11.9 before); after 4,000 steps the networks are behind it.
python -m f3r_jax.main --config=configs/instance.py:paper --config.data.root=/data/pairs
    on own data, with the settings of `python -m f3r_jax.register`.
"""

from ml_collections import ConfigDict

from f3r_jax.config import instance_config


def get_config(option: str = "") -> ConfigDict:
    return instance_config(option=option)
