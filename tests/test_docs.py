"""What the README and the pages show is what happens."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import segloss.losses
from segloss.data import DATASETS, SAMPLERS
from segloss.models import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
# A snippet, and the block of text right below it, if there is one.
SNIPPET = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n*^```text\n(?P<output>.*?)^```)?",
    re.DOTALL | re.MULTILINE,
)
# Data that lie beside the repository.
BESIDE = re.compile(r'"(\.\./[^"]+)"')


def shown_output(snippet):
    """The block of text below, or the comments behind what prints."""
    if snippet["output"] is not None:
        return snippet["output"]
    return "\n".join(re.findall(r"\bprint\(.*\)  # (.*)$", snippet["code"], re.M))


@pytest.mark.parametrize("page", PAGES)
def test_snippets_print_what_the_page_shows(page, tmp_path, monkeypatch):
    """They run as in one session, from the root of a checkout that is left alone."""
    (tmp_path / "checkout").mkdir()
    (tmp_path / "shared").symlink_to(ROOT.parent / "shared")
    monkeypatch.chdir(tmp_path / "checkout")
    text = (ROOT / page).read_text()
    session, absent = {}, []
    for snippet in SNIPPET.finditer(text):
        missing = [p for p in BESIDE.findall(snippet["code"]) if not Path(p).exists()]
        if missing:
            absent += missing
            continue
        # So that an error names the line of the page.
        lines_before = text.count("\n", 0, snippet.start("code"))
        code = compile("\n" * lines_before + snippet["code"], page, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, session)
        assert printed.getvalue().strip() == shown_output(snippet).strip()
    assert session or absent or "```python" not in text
    if absent:
        pytest.skip(
            f"all other snippets ran; {', '.join(absent)} is licensed for research "
            "only, so the repository cannot hold it"
        )


def test_page_of_losses_has_a_row_for_each():
    page = (ROOT / "docs/losses.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == sorted(
        segloss.losses.LOSSES
    )


def test_readme_tables_list_what_exists_and_nothing_else():
    first_cells = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    exist = {*segloss.losses.LOSSES, "compound_loss", *MODELS, *SAMPLERS, *DATASETS}
    assert sorted(first_cells) == sorted(exist)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target
