"""What counts as other code."""

import json
import sys
from pathlib import Path

import pytest

from configs import demo
from experiments.running import fingerprint
from experiments.running.fingerprint import (
    check_unmixed,
    code_fingerprint,
    make_record,
    package_versions,
)
from experiments.running.sweep import expand

CODE = '''
"""What it is for."""

def double(x):
    """Twice `x`."""
    return x * 2  # not x + x

class Empty:
    """Nothing."""
'''


@pytest.fixture
def package(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "module.py").write_text(CODE)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# not x + x", ""),
        ("Twice `x`.", "Doubles."),
        ('"""What it is for."""\n', ""),
        ('    """Nothing."""', "    pass"),
        ("x * 2", "(x*2)"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(package, old, new):
    before = code_fingerprint(package)
    assert old in CODE
    (package / "part" / "module.py").write_text(CODE.replace(old, new))
    assert code_fingerprint(package) == before


def test_code_its_place_and_versions_count(package, monkeypatch):
    seen = {code_fingerprint(package)}
    (package / "part" / "module.py").write_text(CODE.replace("x * 2", "x * 3"))
    seen.add(code_fingerprint(package))
    (package / "part" / "module.py").rename(package / "part" / "other.py")
    seen.add(code_fingerprint(package))
    (package / "data.txt").write_text("is no code")
    seen.add(code_fingerprint(package))
    monkeypatch.setattr(fingerprint, "package_versions", lambda: {"jax": "0.4.2"})
    seen.add(code_fingerprint(package))
    assert len(seen) == 4


def test_code_is_that_of_segloss():
    root = Path(__file__).parents[2] / "segloss"
    assert code_fingerprint() == code_fingerprint(root)
    assert len(code_fingerprint()) == 64


def test_whatever_computes_is_recorded():
    versions = package_versions()
    assert versions["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    # Augmentation, distance maps and planned batches are computed by these.
    assert {"jax", "numpy", "pillow", "dm-pix", "scipy", "numba"} <= versions.keys()


def refusal(workdir, *, code="now", **versions):
    """What is said of a run whose record has these versions; None is none."""
    (run,) = expand(demo.get_config("smoke"), [{"arm": "a", "seed": 0}])
    record = make_record(run, code="then")
    record["commit"] = "0123456789abcdef"
    record["versions"] |= versions
    record["versions"] = {k: v for k, v in record["versions"].items() if v is not None}
    folder = run.folder(workdir)
    (folder / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="are never mixed") as refused:
        check_unmixed([run], workdir, code=code)
    (_, fault, _) = str(refused.value).splitlines()
    return fault.split("seed=0: ")[1]


def test_refusal_names_the_versions_that_differ(tmp_path):
    now = package_versions()
    assert refusal(tmp_path) == "the code changed since, at commit 0123456789ab."
    assert refusal(tmp_path, python="3.9", numba="0.1") == (
        "the code or what it runs on changed since, at commit 0123456789ab; "
        f"python was 3.9, is {now['python']}; numba was 0.1, is {now['numba']}."
    )


def test_versions_that_an_old_record_lacks_are_not_said_to_have_changed(tmp_path):
    assert refusal(tmp_path, jax="0.4.2", scipy=None, python=None) == (
        "the code or what it runs on changed since, at commit 0123456789ab; "
        f"jax was 0.4.2, is {package_versions()['jax']}; "
        "the record has no version of python, scipy."
    )
