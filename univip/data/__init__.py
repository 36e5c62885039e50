"""Photographs, their proposals, the sample plan and the views made of them."""
