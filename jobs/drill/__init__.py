"""The drill: a campaign of faults that a small run must survive, and what it must show for it."""
