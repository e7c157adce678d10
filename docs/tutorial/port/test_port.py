"""The port computes what the Linen model computes."""

# --8<-- [start:port]
import jax
import model_linen
import model_nnx
from flax import nnx

from linen2nnx import parity


def test_port() -> None:
    """From the same random values in every leaf of both sides."""
    x = jax.random.normal(jax.random.key(0), (5, 4))
    module = model_linen.Classifier(3)
    model = nnx.eval_shape(lambda: model_nnx.Classifier(4, 3, rngs=nnx.Rngs(0)))
    parity.assert_parity(module, None, model, x)


# --8<-- [end:port]
