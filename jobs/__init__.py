"""What a scheduler runs: the only place where the method, the engine and the journal are put together."""
