"""Networks: backbones, heads, the momentum target and synchronised batch normalisation."""
