"""The values that `--help` shows without JAX are those of the modules that use them."""

from f3r_jax.data import preprocess, sampling
from f3r_jax.ops import mind
from f3r_jax.register import alignment, choices, demo, exports, pipeline


def test_choices_are_those_of_the_modules():
    assert choices.MODALITIES == preprocess.MODALITIES
    assert choices.INTERPOLATIONS == sampling.INTERPOLATIONS
    assert tuple(mind.PRESETS) == choices.MIND
    assert choices.AFFINE_STEPS == alignment.AFFINE_STEPS
    assert choices.FORMATS == exports.FORMATS
    assert choices.DEMO_FOLDER == demo.FOLDER


def test_defaults_are_those_of_a_registration():
    settings = pipeline.Settings()
    assert (settings.affine, settings.refine, settings.lam) == (choices.AFFINE, choices.REFINE, choices.LAM)
    assert (settings.mind, settings.diffeomorphic) == (choices.PRESET, choices.DIFFEOMORPHIC)
