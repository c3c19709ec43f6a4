"""Studies: the runner of sweeps, and a folder per study with commands and results."""
