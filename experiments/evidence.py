"""Writes what all stored studies together say of Balance-batch into its page.

python -m experiments.evidence

It reads `experiments/*/balance_batch.csv`, which `experiments.collect` writes, and
writes the plots in `docs/does_balance_batch_help/` and the part of
`docs/does_balance_batch_help.md` between `<!-- results -->` and
`<!-- end of results -->`, the same bytes each time.
"""

import pathlib

from experiments.analysis.evidence import read_evidence
from experiments.report.evidence import write_evidence
from segloss import cli

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "does_balance_batch_help.md"


def main(argv: list[str]) -> None:
    del argv
    found = read_evidence(ROOT / "experiments")
    write_evidence(found, PAGE)
    studies = len({one.study for one in found})
    print(f"{PAGE}: {len(found)} comparisons of {studies} studies")


if __name__ == "__main__":
    cli.run(main)
