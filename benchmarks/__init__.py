"""Speed and memory, each against peers in one run."""
