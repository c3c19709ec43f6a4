"""Segmentation losses, metrics and Balance-batch training in JAX.

Import each part by name: `import segloss.losses` imports no other part.
"""

__version__ = "0.1.0"
