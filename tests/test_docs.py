"""What the README and the pages show is what happens.

`make docs` runs the notebooks; the snippets of all other pages run here.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest

import segloss.losses
import segloss.metrics
from segloss.data import DATASETS, SAMPLERS
from segloss.models import MODELS

pytestmark = pytest.mark.shared_out

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if "generated" not in path.parts  # copied from elsewhere by docs/conf.py
    ),
]
# What each table of the pages lists, by the name in its first column.
TABLES = {
    "losses": {*segloss.losses.LOSSES, "compound_loss"},
    "networks": MODELS,
    "samplers": SAMPLERS,
    "own_data": DATASETS,
}
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


@pytest.mark.parametrize("page", TABLES)
def test_tables_list_what_exists_and_nothing_else(page):
    text = (ROOT / f"docs/{page}.md").read_text()
    first_cells = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(first_cells) == sorted(TABLES[page])


def test_page_of_metrics_names_each():
    text = (ROOT / "docs/metrics.md").read_text()
    functions = {n for n in segloss.metrics.__all__ if n != "CalibrationCounts"}
    assert functions <= set(re.findall(r"`(\w+)`", text))


def test_every_study_has_a_page():
    """`docs/conf.py` copies each README of a study; a table and a menu lead there."""
    text = "".join((ROOT / f"docs/{n}.md").read_text() for n in ("studies", "results"))
    for readme in (ROOT / "experiments").glob("*/README.md"):
        name = readme.parent.name
        assert f"../experiments/{name}/README.md" in text, name
        assert f"generated/{name}\n" in text, name


def test_a_newcomer_reads_the_readme_in_two_screens():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    # What CI runs, and what a newcomer runs first.
    for target in ("demo", "test", "docs"):
        assert f"make {target} " in text
        assert re.search(
            rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE
        )


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_what_exists(page):
    """Each config and module of a shell block can be found, and each mode is one."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^%%sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = "\n".join(blocks)
    for config in re.findall(r"--config=(configs/[\w/]+\.py)", commands):
        assert (ROOT / config).is_file(), config
    for module in re.findall(r"python -m ([\w.]+)", commands):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module
    for target in re.findall(r"^make ([a-z-]+)", commands, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    modes = re.search(r"^MODES = (\[.*\])", (ROOT / "run.py").read_text(), re.M)[1]
    assert {*re.findall(r"--mode=(\w+)", commands)} <= {*re.findall(r"\w+", modes)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_page_of_faults_names_tests_that_exist():
    page = (ROOT / "docs/reliability.md").read_text()
    shown = set(re.findall(r"`([\w/]+\.(?:py|sh))`", page))
    assert len(shown) > 25
    absent = {
        path
        for path in shown
        if not (ROOT / "tests" / path).is_file() and not (ROOT / path).is_file()
    }
    assert not absent
