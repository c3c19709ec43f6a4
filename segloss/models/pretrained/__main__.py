"""Converts published weights, so that they are read without torch.

python -m segloss.models.pretrained IN OUT.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segloss.models.pretrained.files import write_weights
from segloss.models.pretrained.layouts import LAYOUTS
from segloss.models.pretrained.load import load_weights


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m segloss.models.pretrained",
        description="Brings published weights under the names of segloss's networks, "
        "which --config.model.pretrained=OUT takes without torch.",
        epilog=f"Layouts known: {', '.join(layout.name for layout in LAYOUTS)}.",
    )
    parser.add_argument("input", metavar="IN", help=".pth, .pt, .npz or .safetensors")
    parser.add_argument(
        "output", metavar="OUT", type=Path, help=".safetensors, a file not there yet"
    )
    args = parser.parse_args(argv)
    try:
        print(convert(args.input, args.output))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def convert(source: str, target: Path) -> str:
    """Writes the weights of `source` to `target`; a line says what they are.

    Raises:
        FileExistsError: if `target` is there already.
        FileNotFoundError: if `source`, or the directory of `target`, is not.
        ValueError: if a name has the wrong ending, or the weights cannot be used.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: weights are written to .safetensors alone.")
    if target.exists():
        raise FileExistsError(f"{target} is there already.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory.")
    weights = load_weights(source)
    write_weights(target, weights.arrays, weights.layout)
    classes = weights.num_classes
    return (
        f"{source}: {weights.layout}, {len(weights.arrays)} arrays, "
        f"{weights.num_parameters / 1e6:.2f} M parameters, "
        + (f"{classes} classes" if classes else "no class head")
        + f"; written to {target}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
