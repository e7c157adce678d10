"""Scale every leaf and keep the original.

Split the model into its graphdef and its state, map over the state,
and merge both into a new model; the old one stays. In Linen the
variables, which are the state here, are mapped as they are.
"""

# --8<-- [start:imports]
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

# --8<-- [end:imports]
from linen2nnx import arguments


# --8<-- [start:model]
def create_model(
    din: int, features: int, *, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(din, features, rngs=rngs)


# --8<-- [end:model]


# --8<-- [start:edit]
def scale_state(model: nnx.Module, scale: float) -> nnx.Module:
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda leaf: leaf * scale, state)
    return nnx.merge(graphdef, state)


# --8<-- [end:edit]


# --8<-- [start:cast]
def cast_to_bfloat16(model: nnx.Module) -> nnx.Module:
    graphdef, state = nnx.split(model)
    state = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), state
    )
    return nnx.merge(graphdef, state)


# --8<-- [end:cast]


# --8<-- [start:noise]
def add_noise(
    model: nnx.Module, seed: int, stddev: float
) -> nnx.Module:
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf
        + stddev * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves)  # (1)!
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, noisy))


# --8<-- [end:noise]


# --8<-- [start:in_place]
def scale_params(model: nnx.Module, scale: float) -> None:
    params = nnx.state(model, nnx.Param)
    params = jax.tree.map(lambda p: p * scale, params)
    nnx.update(model, params)  # (1)!


# --8<-- [end:in_place]


# --8<-- [start:optax]
def scale_by_sgd(model: nnx.Module, scale: float) -> None:
    optimizer = nnx.Optimizer(
        model, optax.sgd(1 - scale), wrt=nnx.Param
    )
    gradients = nnx.state(
        model, nnx.Param
    )  # of half sum of squares
    optimizer.update(model, gradients)  # (1)!


# --8<-- [end:optax]


def pure_state_update(
    seed, x, features, scale
) -> Float[Array, "features"]:
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
    model = create_model(
        x.shape[0], features, rngs=nnx.Rngs(int(seed))
    )
    return scale_state(model, scale)(x)


if __name__ == "__main__":
    print(pure_state_update(0, jnp.arange(3.0), 2, 0.5))
