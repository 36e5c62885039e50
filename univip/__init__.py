"""UniVIP: the method and its fault-tolerant training engine."""
