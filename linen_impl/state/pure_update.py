"""Scale every leaf and keep the original.

Variables are a pytree as they are: one tree map gives new ones, and
the old ones stay. In nnx the model is split first and merged
afterwards; `variables` is the state there, the module the graphdef.

Plain dicts (what `init` returns since flax 0.7) map the same way,
and give plain dicts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict, freeze

from linen2nnx import arguments


# region: edit
def scale_state(variables: FrozenDict, scale: float) -> FrozenDict:
    return jax.tree.map(lambda leaf: leaf * scale, variables)


# region: cast
def cast_to_bfloat16(variables: FrozenDict) -> FrozenDict:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), variables
    )


# region: noise
def add_noise(
    variables: FrozenDict, seed: int, stddev: float
) -> FrozenDict:
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf
        + stddev * jax.random.normal(key, leaf.shape, leaf.dtype)
        # Linen: One key per leaf, in the order of the leaves.
        for key, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(treedef, noisy)


# region: in_place
def scale_params(variables: FrozenDict, scale: float) -> FrozenDict:
    params = jax.tree.map(lambda p: p * scale, variables["params"])
    # Linen: New variables. The other collections are carried over.
    return freeze({**variables, "params": params})


# region: optax
def scale_by_sgd(variables: FrozenDict, scale: float) -> FrozenDict:
    params = variables["params"]
    optimizer = optax.sgd(1 - scale)
    # the gradients of half the sum of squares
    gradients = params
    updates, _ = optimizer.update(gradients, optimizer.init(params))
    # Linen: The updates are applied to the params, which go into
    # new variables.
    params = optax.apply_updates(params, updates)
    return freeze({**variables, "params": params})


# region: end


def pure_state_update(seed, x, features, scale, *, variables=None):
    """Apply one linear layer whose leaves are all scaled.

    Args:
        seed: whole number; seeds the layer.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        scale: finite number; the factor of every leaf.
        variables: {"params": {"kernel", "bias"}} to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    scale = arguments.number("scale", scale)
    model = nn.Dense(features)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(scale_state(variables, scale), x)


if __name__ == "__main__":
    print(pure_state_update(0, jnp.arange(3.0), 2, 0.5))
