"""What an nnx idiom costs beside Linen, measured in pairs."""
