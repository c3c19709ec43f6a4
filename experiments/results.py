"""Writes finished runs into a README: tables, curve, command, versions.

python -m experiments.results experiments/camvid/README.md runs/camvid

What stands between the lines `<!-- results -->` and `<!-- end of results -->` is
replaced; the curve of a single run goes beside the README as `curve.png`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.analysis.readme import check_place, replace_results
from segloss import cli
from segloss.report import (
    class_table,
    curve_figure,
    markdown_table,
    save_figure,
    summary_table,
)


def write_results(readme: pathlib.Path, workdirs: list[pathlib.Path]) -> None:
    """Replaces the results in `readme` by those of the runs.

    Raises:
        ValueError: if the README has no place for them, or a run is not finished.
    """
    check_place(readme)
    runs = {}
    for workdir in workdirs:
        path = workdir / "results.json"
        if not path.exists():
            raise ValueError(f"{path} is missing; the run is not finished.")
        # A run of a sweep lies in ARM/seed=S.
        arm = [workdir.parent.name] if workdir.name.startswith("seed=") else []
        runs["/".join([*arm, workdir.name])] = json.loads(path.read_text())
    parts = [markdown_table(summary_table(runs))]
    if len(workdirs) == 1:
        curve = readme.parent / "curve.png"
        save_figure(curve_figure(workdirs[0] / "metrics.jsonl"), curve)
        parts.append(f"![Loss and mean IoU by step]({curve.name})\n")
    for name, results in runs.items():
        parts.append(f"{name}: {describe(results)}\n")
        parts.append(markdown_table(class_table(results)))
    replace_results(readme, "\n".join(parts))


def describe(results: Mapping[str, Any]) -> str:
    """Where the numbers come from, in a line."""
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    commit = (results["commit"] or "none")[:12]
    return (
        f"{results['num_images']} images of `{results['split']}`, step "
        f"{results['step']}, {results['seconds'] / 60:.1f} minutes on "
        f"{results['devices']}; commit `{commit}`; {versions}."
    )


def main(argv: list[str]) -> None:
    _, readme, *workdirs = map(pathlib.Path, argv)
    write_results(readme, workdirs)


if __name__ == "__main__":
    cli.run(main, arguments=("README", "WORKDIR"), repeats_last=True)
