import jax
import jax.numpy as jnp
import numpy as np

from command_server import Tiny
from f3r_jax.models import build, count_parameters, initialise, label
from f3r_jax.models.diffeomorphic import Diffeomorphic
from f3r_jax.ops.fields import exponential, folding_percent
from f3r_jax.ops.losses import Batch, Objective
from f3r_jax.train.step import create_state, make_optimiser, make_train_step


def volumes(seed=0):
    return (jnp.asarray(array) for array in np.random.default_rng(seed).random((2, 1, 16, 16, 16, 1), np.float32))


def test_it_has_the_parameters_of_its_network(config):
    config.model.name = "f3rnet"
    plain = build(config.model)
    config.model.diffeomorphic = True
    wrapped = build(config.model)
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(lambda key, net=net: initialise(net, key), jax.random.key(0)))
        for net in (plain, wrapped)
    ]
    assert shapes[0] == shapes[1] and count_parameters(wrapped) == 297_289
    assert label(config.model) == "F3RNet-MRB, diffeomorphic"


def test_its_displacement_is_the_exponential_of_the_output():
    network = Tiny(flow_init=1.0)
    params = initialise(network, jax.random.key(0))
    moving, fixed = volumes()
    velocity = network.apply({"params": params}, moving, fixed)
    found = Diffeomorphic(network).apply({"params": params}, moving, fixed)
    np.testing.assert_allclose(found, exponential(velocity), atol=1e-5)
    assert float(folding_percent(found)[0]) < float(folding_percent(velocity)[0])


def test_it_is_trained_by_the_same_step(config):
    network = Diffeomorphic(Tiny(flow_init=0.05))
    optimiser = make_optimiser(config.optim, 6)
    step = make_train_step(network, optimiser, Objective(mind="mind_ssc"))
    state, (moving, fixed) = create_state(network, optimiser, 0), volumes(1)
    losses = []
    for _ in range(6):
        state, metrics = step(state, Batch(moving, fixed), jnp.float32(0.1))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
