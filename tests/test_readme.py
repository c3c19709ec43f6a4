"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

import segloss.losses
from segloss.data import DATASETS, SAMPLERS
from segloss.models import MODELS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_example_prints_what_it_says():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    expected = re.search(r"# (.*)$", code[0], re.MULTILINE)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code[0], {})
    assert printed.getvalue().strip() == expected


def test_tables_list_what_exists_and_nothing_else():
    first_cells = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    exist = {*segloss.losses.LOSSES, "compound_loss", *MODELS, *SAMPLERS}
    assert sorted(first_cells) == sorted(exist)
    for name in DATASETS:
        assert f"`{name}`" in README
