"""Benchmarks of speed and memory; most compare with other libraries in the same run."""
