"""What counts as other code."""

import json
import sys
from pathlib import Path

import pytest

from configs import demo
from experiments.running import fingerprint
from experiments.running.fingerprint import (
    check_devices,
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

def check(x, console):
    if x < 0:
        raise ValueError(f"check: x must be >= 0, got {x}.")
    console.print("It is", x)
    return x
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
        ("x must be >= 0, got {x}", "give an x that is not negative, not {x}"),
        ("It is", "It is now"),
    ],
)
def test_what_is_said_and_layout_do_not_count(package, old, new):
    before = code_fingerprint(package)
    assert old in CODE
    (package / "part" / "module.py").write_text(CODE.replace(old, new))
    assert code_fingerprint(package) == before


def test_code_its_place_and_versions_count(package, monkeypatch):
    seen = {code_fingerprint(package)}
    (package / "part" / "module.py").write_text(CODE.replace("x * 2", "x * 3"))
    seen.add(code_fingerprint(package))
    (package / "part" / "module.py").write_text(CODE.replace("x < 0", "x < 1"))
    seen.add(code_fingerprint(package))
    (package / "part" / "module.py").rename(package / "part" / "other.py")
    seen.add(code_fingerprint(package))
    (package / "data.txt").write_text("is no code")
    (package / "report").mkdir()
    (package / "report" / "tables.py").write_text("computes = 'nothing'")
    seen.add(code_fingerprint(package))
    monkeypatch.setattr(fingerprint, "package_versions", lambda: {"jax": "0.4.2"})
    seen.add(code_fingerprint(package))
    assert len(seen) == 5


def test_code_is_that_of_segloss():
    root = Path(__file__).parents[2] / "segloss"
    assert code_fingerprint() == code_fingerprint(root)
    assert len(code_fingerprint()) == 64
    for name in fingerprint._NOT_COMPUTING:
        assert (root / name).exists()


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
    assert refusal(tmp_path) == (
        "the code changed since, at commit 0123456789ab; "
        "--accept_code=then if it computes the same."
    )
    assert refusal(tmp_path, python="3.9", numba="0.1") == (
        "the code or what it runs on changed since, at commit 0123456789ab; "
        f"python was 3.9, is {now['python']}; numba was 0.1, is {now['numba']}; "
        "--accept_code=then if it computes the same."
    )


def test_versions_that_an_old_record_lacks_are_not_said_to_have_changed(tmp_path):
    assert refusal(tmp_path, jax="0.4.2", scipy=None, python=None) == (
        "the code or what it runs on changed since, at commit 0123456789ab; "
        f"jax was 0.4.2, is {package_versions()['jax']}; "
        "the record has no version of python, scipy; "
        "--accept_code=then if it computes the same."
    )


def begun(workdir, arm, *, code, accepted=(), devices=None):
    (run,) = expand(demo.get_config("smoke"), [{"arm": arm, "seed": 0}])
    record = make_record(run, code=code, accepted_code=accepted)
    folder = run.folder(workdir)
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | {"devices": devices}))
    (folder / "config.json").write_text(run.config.to_json_best_effort())
    return run


def test_a_record_of_another_form_is_named(tmp_path):
    run = begun(tmp_path, "a", code="then")
    folder = run.folder(tmp_path)
    (folder / "run.json").write_text('{"code": 3, "config": [4]}')
    message = (
        rf"^{folder}/run\.json is damaged \(values of another type: code, config\); "
        rf"delete {folder} to run it anew\.$"
    )
    with pytest.raises(ValueError, match=message):
        check_unmixed([run], tmp_path, code="now")


def test_code_that_is_accepted_is_not_refused_and_stays_accepted(tmp_path):
    first = begun(tmp_path, "a", code="before" * 4)
    second = begun(tmp_path, "b", code="then" * 4, accepted=["before" * 4])
    runs = [first, second]
    with pytest.raises(ValueError, match=r"a/seed=0: .*--accept_code=beforebefore if"):
        check_unmixed(runs, tmp_path, code="now")
    # What a resumed run had accepted counts for the runs that it was accepted for.
    assert check_unmixed(runs, tmp_path, code="then" * 4) == ["before" * 4]
    accepted = check_unmixed(runs, tmp_path, code="now", accept_code=["thenthen"])
    assert accepted == ["then" * 4, "before" * 4]
    with pytest.raises(ValueError, match="a/seed=0: the code changed"):
        check_unmixed([first], tmp_path, code="now", accept_code=["thenthen", ""])


def test_runs_on_different_devices_are_refused_before_more_is_run(tmp_path):
    one, four = "1 x NVIDIA H200", "4 x NVIDIA H200"
    runs = [begun(tmp_path, "a", code="c", devices=one)]
    assert check_devices(runs, tmp_path) == one
    assert check_devices([], tmp_path) is None
    runs.append(begun(tmp_path, "b", code="c", devices=four))
    # What the results say is of the whole run.
    results = tmp_path / "a" / "seed=0" / "results.json"
    results.write_text(json.dumps({"summary": {}, "devices": four}))
    assert check_devices(runs, tmp_path) == four
    results.unlink()
    with pytest.raises(ValueError, match=f"{one}: a/seed=0; {four}: b/seed=0. Delete"):
        check_devices(runs, tmp_path)
