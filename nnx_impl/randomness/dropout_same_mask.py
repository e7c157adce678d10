"""Draw the same dropout mask on both sides.

Hand both sides the mask's key: nnx takes `rngs=key`, Linen takes
`rng=key`. From a seed alone the masks differ: Linen folds the
module's path into the key, nnx the number of the draw.
"""

# --8<-- [start:imports]
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

# --8<-- [end:imports]
from linen2nnx import arguments


# --8<-- [start:model]
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
        return self.dropout(self.linear(x), rngs=key)  # (1)!


# --8<-- [end:model]


# --8<-- [start:existing]
def linen_run(
    model: Model, module, x: Float[Array, "n"], key: jax.Array
) -> Float[Array, "m"]:
    bound = module.bind({}, rngs={"dropout": key})
    drawn = bound.dropout.make_rng("dropout")  # (1)!
    return model(x, drawn)


# --8<-- [end:existing]


# --8<-- [start:mask]
def apply_mask(
    model: Model, x: Float[Array, "n"], mask: Bool[Array, "m"]
) -> Float[Array, "m"]:
    y = model.linear(x)
    return jnp.where(mask, y / (1 - model.dropout.rate), 0)  # (1)!


# --8<-- [end:mask]


# --8<-- [start:stream]
def run_steps(
    model: Model,
    x: Float[Array, "n"],
    key: jax.Array,
    num_steps: int,
) -> list:
    rngs = nnx.Rngs(dropout=key)
    return [model(x, rngs) for _ in range(num_steps)]  # (1)!


# --8<-- [end:stream]


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
