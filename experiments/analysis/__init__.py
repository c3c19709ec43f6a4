"""What is made of finished runs: stored results, intervals, tables, plots."""
