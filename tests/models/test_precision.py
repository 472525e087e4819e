"""Features in bfloat16, and features computed anew for the gradient: what changes, and what must not."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.models import build, initialise
from f3r_jax.ops.conv import conv3d
from f3r_jax.ops.losses import gradient_l2

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
SHAPE = (16, 17, 16)
REAL = ("f3rnet", "voxelmorph1", "voxelmorph2", "faim")
BFLOAT16 = 2.0**-8  # relative rounding


def network(name="f3rnet", dtype="float32", *, remat=False):
    model = {"name": name, "variant": "mrb", "flow_init": 0.05, "diffeomorphic": False, "remat": remat}
    return build(ConfigDict(model), dtype=dtype)


def images():
    return jnp.asarray(np.random.default_rng(0).random((2, 1, *SHAPE, 1), dtype=np.float32))


@cache
def parameters():
    return initialise(network(), jax.random.key(0))


def loss(net, params):
    u = net.apply({"params": params}, *images())
    return gradient_l2(u) + jnp.mean(u), u


@cache
def gradient_and_field(dtype="float32", *, remat=False):
    net = network(dtype=dtype, remat=remat)
    compiled = jax.jit(jax.grad(partial(loss, net), has_aux=True), compiler_options=QUICKLY_COMPILED)
    return compiled(parameters())


def angle(one, other):
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("name", REAL)
def test_bfloat16_keeps_parameters_gradient_and_field_in_float32(name):
    net = network(name, "bfloat16")
    params = jax.eval_shape(lambda: initialise(net, jax.random.key(0)))
    gradient, field = jax.eval_shape(jax.grad(partial(loss, net), has_aux=True), params)
    assert field.dtype == np.float32 and {leaf.dtype for leaf in jax.tree.leaves((params, gradient))} == {field.dtype}
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)


def test_bfloat16_gives_the_field_and_the_gradient_of_float32_roughly():
    (gradient, field), (expected_gradient, expected) = (gradient_and_field(dtype) for dtype in ("bfloat16", "float32"))
    error = np.linalg.norm(field - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 8 * BFLOAT16, "either nothing is in bfloat16, or it loses more than rounding"
    assert angle(gradient, expected_gradient) > 0.999
    # A field rounded to 8 bits would come out equal.
    assert np.any(field.astype(jnp.bfloat16).astype(np.float32) != field)


def test_features_are_in_bfloat16_throughout():
    net = network(dtype="bfloat16")
    _, state = jax.eval_shape(partial(net.apply, mutable=["features"]), {"params": parameters()}, *images())
    assert {leaf.dtype for leaf in jax.tree.leaves(state["features"])} == {jnp.bfloat16.dtype}


@pytest.mark.parametrize("name", REAL)
def test_a_program_for_a_gpu_has_its_convolutions_in_bfloat16_but_the_last(name):
    net = network(name, "bfloat16")
    params = jax.eval_shape(lambda: initialise(net, jax.random.key(0)))
    text = jax.jit(net.apply).trace({"params": params}, *images()).lower(lowering_platforms=("cuda",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution(" in line]
    assert len(lines) > 10
    assert sum("f32>" in line for line in lines) == 1


@pytest.mark.slow
def test_remat_changes_no_field_and_no_gradient():
    (gradient, field), (expected_gradient, expected) = (gradient_and_field(remat=remat) for remat in (True, False))
    np.testing.assert_allclose(field, expected, atol=1e-5 * np.abs(expected).max())
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradient, expected_gradient)


def calls_of_conv3d(jaxpr):
    """How often it is called, also in what a jaxpr's operations hold."""
    count = 0
    for operation in jaxpr.eqns:
        held = [value for given in operation.params.values() for value in (given if type(given) is tuple else [given])]
        count += operation.params.get("name") == "conv3d"
        count += sum(calls_of_conv3d(value.jaxpr) for value in held if isinstance(value, ClosedJaxpr))
        count += sum(calls_of_conv3d(value) for value in held if isinstance(value, Jaxpr))
    return count


def test_remat_computes_the_convolutions_of_the_blocks_twice():
    def convolutions(*, remat):
        gradient = jax.grad(lambda params: loss(network(remat=remat), params)[0])
        return calls_of_conv3d(jax.make_jaxpr(gradient)(parameters()).jaxpr)

    # Six residual blocks of four convolutions, nine MRBs of five.
    assert convolutions(remat=True) - convolutions(remat=False) == 6 * 4 + 9 * 5


@pytest.mark.parametrize("size", [(3, 3, 3), (3, 3, 1), (1, 1, 3), (1, 1, 1)], ids=str)
def test_sums_over_many_voxels_are_made_in_float32(size):
    # A sum of ones in bfloat16 stops at 256.
    x, kernel, bias = (jnp.ones(shape, jnp.bfloat16) for shape in ((1, 16, 16, 16, 2), (*size, 2, 3), (3,)))
    y, pull_back = jax.vjp(conv3d, x, kernel, bias)
    dx, dkernel, dbias = pull_back(jnp.ones_like(y))
    assert {array.dtype for array in (y, dx, dkernel, dbias)} == {jnp.bfloat16.dtype}
    np.testing.assert_array_equal(dbias.astype(np.float32), 16.0**3)
    middle = dkernel[tuple(n // 2 for n in size)].astype(np.float32)
    np.testing.assert_array_equal(middle, 16.0**3)


def test_unknown_type_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match=r"train\.dtype is 'float16', expected one of float32, bfloat16"):
        network(dtype="float16")


def test_command_trains_and_evaluates_in_bfloat16(commands, arguments, tmp_path):
    finished = commands.run("main", *arguments({"train.dtype": "bfloat16", "train.steps": 2}))
    assert finished.status == 0, finished.err
    assert "Dice" in finished.out
