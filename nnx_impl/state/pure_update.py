"""Scale every leaf and keep the original.

Split the model into its graphdef and its state, map over the state,
and merge both into a new model; the old one stays. In Linen the
variables, which are the state here, are mapped as they are.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from linen2nnx import arguments


# region: edit
def scale_state(model: nnx.Module, scale: float) -> nnx.Module:
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda leaf: leaf * scale, state)
    return nnx.merge(graphdef, state)


# region: cast - Variation: cast every leaf to bfloat16
def cast_to_bfloat16(model: nnx.Module) -> nnx.Module:
    graphdef, state = nnx.split(model)
    state = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), state
    )
    return nnx.merge(graphdef, state)


# region: noise - Variation: add seeded noise to every leaf
def add_noise(
    model: nnx.Module, seed: int, stddev: float
) -> nnx.Module:
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf
        + stddev * jax.random.normal(key, leaf.shape, leaf.dtype)
        # nnx: One key per leaf, in the order of the leaves, which
        # is another one past ten layers.
        for key, leaf in zip(keys, leaves)
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, noisy))


# region: in_place - Variation: the parameters only, in place
def scale_params(model: nnx.Module, scale: float) -> None:
    params = nnx.state(model, nnx.Param)
    params = jax.tree.map(lambda p: p * scale, params)
    # nnx: The model's Params take the new values. Other Variables
    # are not touched.
    nnx.update(model, params)


# region: optax
def scale_by_sgd(model: nnx.Module, scale: float) -> None:
    optimizer = nnx.Optimizer(
        model, optax.sgd(1 - scale), wrt=nnx.Param
    )
    # the gradients of half the sum of squares
    gradients = nnx.state(model, nnx.Param)
    # nnx: The optimizer updates the model in place.
    optimizer.update(model, gradients)


# region: end


def pure_state_update(seed, x, features, scale):
    """Apply one linear layer whose leaves are all scaled.

    Args:
        seed: whole number; seeds the layer.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        scale: finite number; the factor of every leaf.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    scale = arguments.number("scale", scale)
    model = nnx.Linear(x.shape[0], features, rngs=nnx.Rngs(seed))
    return scale_state(model, scale)(x)


if __name__ == "__main__":
    print(pure_state_update(0, jnp.arange(3.0), 2, 0.5))
