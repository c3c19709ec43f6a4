"""A study on one page: see `python -m experiments.report --help`."""
