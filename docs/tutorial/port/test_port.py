"""The port computes what the Linen model computes."""

import jax
import model_linen
import model_nnx
from flax import nnx

from linen2nnx import parity

IMAGES = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
RENAME = {"Conv_0": "conv", "BatchNorm_0": "norm", "Dense_0": "out"}


def port() -> nnx.Module:
    """The nnx model without values."""
    return nnx.eval_shape(lambda: model_nnx.Classifier(5, rngs=nnx.Rngs(0)))


def test_evaluation() -> None:
    """Outputs, gradients and an optimizer step, from the same random values."""
    model = port()
    model.eval()
    parity.assert_parity(
        model_linen.Classifier(5),
        None,
        model,
        IMAGES,
        linen_kwargs={"train": False},
        rename=RENAME,
    )


def test_training() -> None:
    """The same, with the same dropout masks, and the statistics after the step."""
    parity.assert_parity(
        model_linen.Classifier(5),
        None,
        port(),
        IMAGES,
        linen_kwargs={"train": True},
        rename=RENAME,
        randomness="same keys",
    )
