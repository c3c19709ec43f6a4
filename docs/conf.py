"""How Sphinx builds the site; `make docs` runs it."""

import inspect
import logging
import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# Notebooks run in processes of their own, which need the package as well.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["JAX_PLATFORMS"] = "cpu"

# One line for each notebook that runs says nothing.
logging.getLogger("traitlets").setLevel(logging.WARNING)

project = "segloss"
html_title = "segloss"
html_theme = "furo"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
# The search finds every name; the indices are too wide for a narrow screen.
html_use_index = False
html_domain_indices = False
exclude_patterns = ["requirements.txt"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# Docstrings write code between single backticks. It becomes a link where it names
# something that is documented.
default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
maximum_signature_line_length = 70
napoleon_use_ivar = True
napoleon_custom_sections = [("Hyperparameters", "params_style")]
copybutton_prompt_text = ">>> |$ "
copybutton_prompt_is_regexp = True

# Files outside `docs` that are pages of the site: each study, and a few more.
REPOSITORY_PAGES = {
    **{
        path: f"{path.parent.name}.md"
        for path in sorted((ROOT / "experiments").glob("*/README.md"))
    },
    ROOT / "experiments/voc2012/balance_batch_statistics.md": "voc2012_statistics.md",
    ROOT / "experiments/voc2012/classes_in_crops.md": "voc2012_crops.md",
    ROOT / "experiments/instability/gradient_variance.md": "gradient_variance.md",
    ROOT / "benchmarks/RESULTS.md": "benchmarks.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "SECURITY.md": "security.md",
}
GENERATED = DOCS / "generated"
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def relink(text, origin, page_folder):
    """Makes the links of a file at `origin` fit for a page in `page_folder`."""

    def replace(match):
        target = (origin / match[1]).resolve()
        if target in REPOSITORY_PAGES:
            target = GENERATED / REPOSITORY_PAGES[target]
        path = os.path.relpath(target, page_folder)
        return f"]({path}{match[2] or ''})"

    return LINK.sub(replace, text)


def generate_pages(app):
    """Copies the pages that lie outside `docs`."""
    GENERATED.mkdir(exist_ok=True)
    for origin, name in REPOSITORY_PAGES.items():
        text = relink(origin.read_text(), origin.parent, GENERATED)
        page = GENERATED / name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def relink_page(app, docname, source):
    folder = (DOCS / docname).parent
    if folder != GENERATED:
        source[0] = relink(source[0], folder, folder)


# What a signature shows, as users write it: jaxtyping gives the class behind
# `jax.Array` and takes aliases apart, and Flax adds two fields to each module.
SHORTER = {
    r"~?jaxlib\._jax\.Array": "Array",
    r"Sequence\[Array \| [^\]]* \| complex\]": "Sequence[ArrayLike]",
    r"parent: [^=]* = <[^>]*>, name: str \| None = None,? ?": "",
}


def tidy_signature(app, what, name, obj, options, signature, returns):
    for pattern, shorter in SHORTER.items():
        signature = signature and re.sub(pattern, shorter, signature)
        returns = returns and re.sub(pattern, shorter, returns)
    return signature, returns


def attributes_of(lines):
    """Where the section of the attributes begins, and the lines of each by name."""
    headings = (i for i, x in enumerate(lines) if re.match(r"Attributes\b.*:$", x))
    heading = next(headings, len(lines))
    entries, name = {}, None
    for line in lines[heading + 1 :]:
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            name = line.split(":")[0].strip()
        entries.setdefault(name, []).append(line)
    return heading, entries


def add_inherited_attributes(app, what, name, obj, options, lines):
    """Describes the attributes that a network's docstring leaves to its bases."""
    if what != "class" or not obj.__module__.startswith("segloss.models"):
        return
    heading, entries = attributes_of(lines)
    end = heading + 1 + sum(map(len, entries.values()))
    for base in obj.__mro__[1:]:
        if base.__module__.startswith("segloss"):
            text = inspect.cleandoc(base.__doc__ or "")
            entries = attributes_of(text.splitlines())[1] | entries
    described = (line for entry in entries.values() for line in entry)
    lines[heading:end] = ["", "Attributes:", *described]


def setup(app):
    app.connect("builder-inited", generate_pages)
    app.connect("source-read", relink_page)
    app.connect("autodoc-process-signature", tidy_signature)
    # Before napoleon, whose priority is the default of 500.
    app.connect("autodoc-process-docstring", add_inherited_attributes, priority=400)
