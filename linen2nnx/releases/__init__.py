"""Flax releases: their environments, the upgrade check and its report."""
