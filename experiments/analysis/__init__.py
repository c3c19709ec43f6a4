"""From finished runs to stored results, intervals, tables and plots."""
