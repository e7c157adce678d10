"""Draw the same dropout mask on both sides.

Hand both sides the mask's key: Linen takes `rng=key`, nnx takes
`rngs=key`. From a seed alone the masks differ: Linen folds the
module's path into the key, nnx the number of the draw.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from linen2nnx import arguments


# region: model
class Model(nn.Module):
    features: int
    rate: float

    def setup(self):
        self.linear = nn.Dense(self.features)
        self.dropout = nn.Dropout(self.rate, deterministic=False)

    def __call__(
        self, x: Float[Array, "n"], key=None
    ) -> Float[Array, "m"]:
        # Linen: A key is used as it is. Without one, the layer
        # folds one out of `rngs={"dropout": key}`.
        return self.dropout(self.linear(x), rng=key)


# region: existing
def linen_run(
    module: Model,
    variables: dict,
    x: Float[Array, "n"],
    key: jax.Array,
) -> Float[Array, "m"]:
    # Linen: The layer's path and a count are folded into this key.
    rngs = {"dropout": key}
    return module.apply(variables, x, rngs=rngs)


# region: mask
def apply_mask(
    module: Model,
    variables: dict,
    x: Float[Array, "n"],
    mask: Bool[Array, "m"],
) -> Float[Array, "m"]:
    y = module.apply(variables, x, method=lambda m, x: m.linear(x))
    # Linen: What is kept is divided by the share that is kept.
    return jnp.where(mask, y / (1 - module.rate), 0)


# region: stream
def run_steps(
    module: Model,
    variables: dict,
    x: Float[Array, "n"],
    key: jax.Array,
    num_steps: int,
) -> list:
    keys = [jax.random.fold_in(key, i) for i in range(num_steps)]
    # Linen: The step is folded into the key; without it every step
    # has the same mask.
    return [module.apply(variables, x, key) for key in keys]


# region: end


def dropout_same_mask(
    seed, x, features, rate, *, variables=None
) -> Float[Array, "features"]:
    """Apply a linear layer and dropout, with a mask of its own key.

    Args:
        seed: whole number; seeds the layer, + 1000 the mask.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        rate: number from 0, below 1; the share that is dropped.
        variables: params of `linear` to start from.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    rate = arguments.rate("rate", rate)
    model = Model(features, rate)
    variables = arguments.starting_variables(
        "variables", variables, model, seed, x
    )
    return model.apply(variables, x, jax.random.key(seed + 1000))


if __name__ == "__main__":
    print(dropout_same_mask(0, jnp.arange(3.0), 4, 0.5))
