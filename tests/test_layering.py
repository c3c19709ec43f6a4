"""The arrows of the house point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

pytestmark = pytest.mark.shared_out

ROOT = Path(__file__).parents[1]
GRAPH = grimp.build_graph("segloss", include_external_packages=True, cache_dir=None)
ARRAYS = {"jax", "numpy", "jaxtyping"}
LOADING = ARRAYS | {
    "absl",
    "array_record",
    "dm_pix",
    "etils",
    "grain",
    "imagecodecs",
    "numba",
    "PIL",
    "rich",
    "scipy",
    "tensorflow_datasets",
    "tifffile",
}
ERRORS = "segloss.errors"
DRAWING = {"jaxtyping", "matplotlib", "numpy", "PIL", "rich"}
# Per place: the packages it may import, and the places of segloss beside itself.
MAY_IMPORT = {
    "losses": (ARRAYS, {"jitting", "registry"}),
    "metrics": (ARRAYS, {"jitting"}),
    "data": (
        LOADING | {"apache_beam"},
        {"console", "locking", "registry", "writing"},
    ),
    "models": (ARRAYS | {"flax", "safetensors", "torch"}, {"registry"}),
    "report": (DRAWING, {"writing"}),
    "config": (
        ARRAYS | {"flax", "ml_collections"},
        {
            *("data", "devices", "hosts", "losses", "models", "registry", "remote"),
            "writing",
        },
    ),
    "trained": (
        LOADING | {"flax", "ml_collections", "orbax"},
        {
            *("config", "console", "data", "devices", "hosts", "metrics"),
            *("provenance", "remote", "report", "serving", "writing"),
        },
    ),
    "train": (
        LOADING | {"flax", "ml_collections", "optax", "tensorboardX"},
        {
            *("config", "console", "data", "devices", "hosts", "locking", "losses"),
            *("metrics", "models", "provenance", "registry", "remote", "trained"),
            "writing",
        },
    ),
    "inspection": (
        ARRAYS | {"ml_collections", "rich"},
        {"config", "console", "data", "losses", "remote", "report", "writing"},
    ),
    "devices": (ARRAYS, {"hosts"}),
    "hosts": (ARRAYS, set()),
    "console": ({"rich"}, set()),
    "provenance": (set(), set()),
    "errors": (set(), set()),
    "jitting": ({"jax"}, set()),
    "registry": (set(), set()),
    "locking": (set(), set()),
    "remote": ({"fsspec"}, {"hosts", "locking"}),
    "writing": (set(), set()),
    "serving": ({"jax", "numpy"}, set()),
    "cli": ({"absl", "ml_collections"}, {"hosts"}),
}


def place_of(module):
    """`segloss.losses.reduce` lies in `losses`, `numpy` in itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "segloss" and len(parts) > 1 else parts[0]


def test_every_place_has_a_rule():
    assert {place_of(m) for m in GRAPH.find_children("segloss")} == set(MAY_IMPORT)


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_place_imports_only_what_it_may(place):
    packages, places = MAY_IMPORT[place]
    allowed = (
        packages | places | {place, "errors", "segloss"} | set(sys.stdlib_module_names)
    )
    root = f"segloss.{place}"
    for module in {root} | GRAPH.find_descendants(root):
        for imported in GRAPH.find_modules_directly_imported_by(module):
            assert place_of(imported) in allowed, f"{module} imports {imported}"


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("configs/**/*.py", {"ml_collections", "configs", "collections", "segloss"}),
        ("run.py", {"absl", "segloss", "pathlib"}),
        (
            "experiments/**/*.py",
            {
                *sys.stdlib_module_names,
                "absl",
                "configs",
                "experiments",
                "jax",
                "jaxtyping",
                "jinja2",
                "matplotlib",
                "ml_collections",
                "numpy",
                "PIL",
                "rich",
                "scipy",
                "segloss",
                "submitit",
            },
        ),
    ],
)
def test_configs_are_values_and_commands_are_thin(pattern, allowed):
    paths = list(ROOT.glob(pattern))
    assert paths
    for path in paths:
        for imported in imports_of(path):
            assert imported.split(".")[0] in allowed, f"{path.name}: {imported}"
            if pattern.startswith("configs"):
                assert not imported.startswith("segloss.") or imported == ERRORS
    assert len((ROOT / "run.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_importing_has_no_side_effect(place):
    """No flag is defined, no device asked for, no dataset registered."""
    code = f"""
import sys
import segloss.{place}
if "absl.flags" in sys.modules:
    from absl import flags
    owners = {{m for m in flags.FLAGS.flags_by_module_dict() if "segloss" in m}}
    assert not owners, owners
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, "a device was asked for"
if "tensorflow_datasets" in sys.modules:
    from tensorflow_datasets.core import registered
    ours = [k for k in registered._DATASET_REGISTRY if "folder" in k or "longtail" in k]
    assert not ours, ours
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_using_a_trained_model_imports_no_optimizer():
    code = """
import sys
import segloss.trained
assert "optax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
