"""Instance optimisation alone: the displacement of each test case is optimised on MIND, without a network or training.

python -m f3r_jax.main --config=configs/instance.py
    on the phantom's test cases, as a baseline of the networks. On two cores TIME.
python -m f3r_jax.main --config=configs/instance.py:paper --config.data.root=/data/pairs
    on own data, with the settings of `python -m f3r_jax.register`.
"""

from ml_collections import ConfigDict

from f3r_jax.defaults import instance_config


def get_config(option: str = "") -> ConfigDict:
    return instance_config(option=option)
