"""The checkpoint format, its writer and its manager."""
