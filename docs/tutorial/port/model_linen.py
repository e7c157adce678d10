"""The model as it was, in Linen."""

import flax.linen as nn
import jax


class Classifier(nn.Module):
    """A convolution, a normalisation, dropout and a linear layer."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of shape (batch, classes) of images (batch, height, width, 3)."""
        x = nn.Conv(8, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x).mean(axis=(1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)
