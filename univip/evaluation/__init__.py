"""Measures of frozen features, as pure functions on tensors."""
