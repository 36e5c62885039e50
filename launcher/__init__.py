"""What a researcher types: the command line, and SLURM through submitit."""
