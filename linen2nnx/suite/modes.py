"""The two modes of nnx that every parity test runs in."""

MODES = ("graph", "tree")
