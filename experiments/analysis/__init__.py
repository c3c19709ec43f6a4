"""Turns finished runs into stored results, intervals, tables and plots."""
