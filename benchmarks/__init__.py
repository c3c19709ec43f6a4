"""Benchmarks of speed and memory; each compares with peers in the same run."""
