"""Draw the same dropout mask on both sides.

Hand both sides the mask's key: nnx takes `rngs=key`, Linen takes
`rng=key`. From a seed alone the masks differ: Linen folds the
module's path into the key, nnx the number of the draw.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from linen2nnx import arguments


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

    def __call__(
        self, x: Float[Array, "n"], key=None
    ) -> Float[Array, "m"]:
        # nnx: A key is used as it is. Without one, the layer draws
        # from the stream that it got from `rngs` when it was made.
        return self.dropout(self.linear(x), rngs=key)


# region: existing
def linen_run(
    model: Model, module, x: Float[Array, "n"], key: jax.Array
) -> Float[Array, "m"]:
    bound = module.bind({}, rngs={"dropout": key})
    # nnx: `module` is the Linen module. This is the first key that
    # its layer `dropout` draws; a layer that is called twice draws
    # a second one, by a second `make_rng` on the same bound module.
    drawn = bound.dropout.make_rng("dropout")
    return model(x, drawn)


# region: mask
def apply_mask(
    model: Model, x: Float[Array, "n"], mask: Bool[Array, "m"]
) -> Float[Array, "m"]:
    y = model.linear(x)
    # nnx: What is kept is divided by the share that is kept.
    return jnp.where(mask, y / (1 - model.dropout.rate), 0)


# region: stream - Variation: a new mask at every step
def run_steps(
    model: Model,
    x: Float[Array, "n"],
    key: jax.Array,
    num_steps: int,
) -> list:
    rngs = nnx.Rngs(dropout=key)
    # nnx: The n-th draw of a stream is `jax.random.fold_in(key,
    # n)`, so these are the same masks.
    return [model(x, rngs) for _ in range(num_steps)]


# region: end


def dropout_same_mask(
    seed, x, features, rate
) -> Float[Array, "features"]:
    """Apply a linear layer and dropout, with a mask of its own key.

    Args:
        seed: whole number; seeds the layer, + 1000 the mask.
        x: input, numeric, shape (din,).
        features: whole number from 1; size of the output.
        rate: number from 0, below 1; the share that is dropped.

    Returns:
        The output, shape (features,).

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """
    seed = arguments.seed("seed", seed)
    x = arguments.vector("x", x)
    features = arguments.size("features", features)
    rate = arguments.rate("rate", rate)
    rngs = nnx.Rngs(int(seed))
    model = Model(x.shape[0], features, rate, rngs=rngs)
    return model(x, jax.random.key(seed + 1000))


if __name__ == "__main__":
    print(dropout_same_mask(0, jnp.arange(3.0), 4, 0.5))
