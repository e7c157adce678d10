"""The model as it was, in Linen."""

import flax.linen as nn
import jax


class Classifier(nn.Module):
    """Two layers with a normalisation between them."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of shape (batch, classes)."""
        x = nn.Dense(8, name="hidden")(x)
        x = nn.relu(nn.LayerNorm(name="norm")(x))
        return nn.Dense(self.classes, name="out")(x)
