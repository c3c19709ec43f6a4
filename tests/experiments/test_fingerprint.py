"""What counts as other code."""

from pathlib import Path

import pytest

from experiments.running import fingerprint
from experiments.running.fingerprint import code_fingerprint

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
