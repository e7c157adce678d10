"""Draw the same dropout mask on both sides.

Hand both sides the mask's key: Linen takes `rng=key`, nnx takes
`rngs=key`. From a seed alone the masks differ: Linen folds the
module's path into the key, nnx the number of the draw.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


# region: model
class Model(nn.Module):
    features: int
    rate: float

    def setup(self):
        self.linear = nn.Dense(self.features)
        self.dropout = nn.Dropout(self.rate, deterministic=False)

    def __call__(self, x, key=None):  # (n,) -> (m,)
        # Linen: A key is used as it is. Without one, the layer
        # folds one out of `rngs={"dropout": key}`.
        return self.dropout(self.linear(x), rng=key)


# region: existing
def linen_run(
    module: Model, variables: dict, x: jax.Array, key: jax.Array
) -> jax.Array:  # (n,) -> (m,)
    # Linen: The layer's path and a count are folded into this key.
    rngs = {"dropout": key}
    return module.apply(variables, x, rngs=rngs)


# region: mask
def apply_mask(
    module: Model, variables: dict, x: jax.Array, mask: jax.Array
) -> jax.Array:  # (n,), mask (m,) -> (m,)
    y = module.apply(variables, x, method=lambda m, x: m.linear(x))
    # Linen: What is kept is divided by the share that is kept.
    return jnp.where(mask, y / (1 - module.rate), 0)


# region: stream
def run_steps(
    module: Model,
    variables: dict,
    x: jax.Array,
    key: jax.Array,
    num_steps: int,
) -> list:  # of arrays (m,)
    keys = [jax.random.fold_in(key, i) for i in range(num_steps)]
    # Linen: The step is folded into the key; without it every step
    # has the same mask.
    return [module.apply(variables, x, key) for key in keys]


# region: end


if __name__ == "__main__":
    x, key = jnp.arange(3.0), jax.random.key(1)
    model = Model(features=8, rate=0.5)
    variables = model.init(jax.random.key(0), x, key)
    print(model.apply(variables, x, key))
