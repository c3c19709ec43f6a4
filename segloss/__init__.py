"""Segmentation losses, metrics and Balance-batch training in JAX.

Each part is imported by name, so that `import segloss.losses` costs nothing else.
"""

__version__ = "0.1.0"
