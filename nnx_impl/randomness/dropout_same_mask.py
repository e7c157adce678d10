"""Draw the same dropout mask on both sides.

Hand both sides the mask's key: nnx takes `rngs=key`, Linen takes
`rng=key`. From a seed alone the masks differ: Linen folds the
module's path into the key, nnx the number of the draw.
"""

import jax
import jax.numpy as jnp
from flax import nnx


# region: model - The model
class Model(nnx.Module):
    def __init__(
        self,
        din: int,
        features: int,
        rate: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.linear = nnx.Linear(din, features, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x, key=None):  # (n,) -> (m,)
        # nnx: A key is used as it is. Without one, the layer draws
        # from the stream that it got from `rngs` when it was made.
        return self.dropout(self.linear(x), rngs=key)


# region: existing
def linen_run(
    model: Model, module, x: jax.Array, key: jax.Array
) -> jax.Array:  # (n,) -> (m,)
    bound = module.bind({}, rngs={"dropout": key})
    # nnx: `module` is the Linen module. This is the first key that
    # its layer `dropout` draws; a layer that is called twice draws
    # a second one, by a second `make_rng` on the same bound module.
    drawn = bound.dropout.make_rng("dropout")
    return model(x, drawn)


# region: mask
def apply_mask(
    model: Model, x: jax.Array, mask: jax.Array
) -> jax.Array:  # (n,), mask (m,) -> (m,)
    y = model.linear(x)
    # nnx: What is kept is divided by the share that is kept.
    return jnp.where(mask, y / (1 - model.dropout.rate), 0)


# region: stream - Variation: a new mask at every step
def run_steps(
    model: Model, x: jax.Array, key: jax.Array, num_steps: int
) -> list:  # of arrays (m,)
    rngs = nnx.Rngs(dropout=key)
    # nnx: The n-th draw of a stream is `jax.random.fold_in(key,
    # n)`, so these are the same masks.
    return [model(x, rngs) for _ in range(num_steps)]


# region: end


if __name__ == "__main__":
    x, key = jnp.arange(3.0), jax.random.key(1)
    model = Model(din=3, features=8, rate=0.5, rngs=nnx.Rngs(0))
    print(model(x, key))
