"""Reports a study as one HTML page: see `python -m experiments.report --help`."""
