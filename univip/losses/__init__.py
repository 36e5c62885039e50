"""Losses, per image: cosine regression and optimal transport between instances."""
