import dataclasses
import hashlib
import json

import numpy as np
import pytest
from studies import make_run, make_study, write_run

from experiments.analysis import tables
from experiments.analysis.collecting import collect
from experiments.analysis.store import load, save
from experiments.report.contents import contents

FILES = ("study.json", "runs.json", "confusions.npz")

CONFIG = """
QUESTION = "Does Balance-batch find poles?"
COMPARISONS = (("cl3", "random4"), ("cl3-images", "random4"))

def get_config(size="full"):
    raise AssertionError("what the runs were trained with is in their folders")

def sweep():
    balanced = dict(name="balance_batch", batch_max=4, batch_cl=3)
    for arm, sampler, other in (
        ("random4", dict(name="random", batch_max=4), {}),
        ("cl3", balanced, {}),
        ("cl3-images", balanced, {"total_steps": 133}),
    ):
        for seed in range(3):
            yield {"arm": arm, "seed": seed, "sampler": sampler, **other}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "poles.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def workdir(tmp_path):
    for run in make_study().runs:
        write_run(tmp_path / "runs", run)
    return tmp_path / "runs"


def same(a, b):
    """Equal in all but what equality of arrays says."""
    for x, y in zip(a.runs, b.runs, strict=True):
        np.testing.assert_array_equal(x.per_image, y.per_image)
    plain = [
        dataclasses.replace(
            s, runs=tuple(dataclasses.replace(r, per_image=None) for r in s.runs)
        )
        for s in (a, b)
    ]
    return plain[0] == plain[1]


def test_runs_are_collected_in_the_order_of_the_sweep(config, workdir):
    study = collect(config, workdir)
    expected = make_study(setting={**study.setting}, base={"total_steps": 100})
    assert same(study, expected)
    assert [run.key for run in study.runs[2:5]] == [
        "random4/seed=2",
        "cl3/seed=0",
        "cl3/seed=1",
    ]


def test_setting_is_what_runs_share_and_names_no_place(config, workdir):
    assert collect(config, workdir).setting == {
        "loss.name": "softmax_cross_entropy",
        "data.name": "folder",
        "model.name": "unet",
        "model.pretrained": "weights.safetensors",
        "evaluate.split": "val",
    }


def test_what_is_stored_comes_back_and_is_stored_as_the_same_bytes(tmp_path):
    study = make_study()
    save(study, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert same(load(tmp_path / "b"), study)
    for name in FILES:
        first, second = ((tmp_path / x / name).read_bytes() for x in "ab")
        assert first == second
    first, *lines = (tmp_path / "a/runs.json").read_text().splitlines()
    assert len(lines) == 1 + 9 + 1
    assert '"devices": ' in first
    assert "devices" not in "".join(lines)


def test_curve_whose_points_lack_values_comes_back(tmp_path):
    curve = [{"step": 1, "loss": 0.5}, {"step": 2, "val_mean_iou": 0.25}]
    first, *runs = make_study().runs
    study = make_study(runs=(dataclasses.replace(first, curve=curve), *runs))
    save(study, tmp_path)
    assert same(load(tmp_path), study)


def test_runs_of_an_older_form_are_refused(tmp_path):
    save(make_study(), tmp_path)
    (tmp_path / "runs.json").write_text("[]")
    about = json.loads((tmp_path / "study.json").read_text())
    about["sha256"]["runs.json"] = hashlib.sha256(b"[]").hexdigest()
    (tmp_path / "study.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"must hold an object, got a list.* anew"):
        load(tmp_path)


def test_long_runs_keep_a_curve_of_a_hundred_mean_losses(tmp_path, config, workdir):
    lines = [f'{{"step": {s}, "loss": {s}.0}}\n' for s in range(1, 1001)]
    path = workdir / "random4/seed=0/metrics.jsonl"
    path.write_text("".join(lines) + '{"step": 995, "val_mean_iou": 0.25}\n')
    curve = collect(config, workdir).runs[0].curve
    # The mean of 1 to 10, then of 11 to 20.
    assert curve[:2] == [{"step": 10, "loss": 5.5}, {"step": 20, "loss": 15.5}]
    assert curve[99] == {"step": 995, "val_mean_iou": 0.25}
    assert len(curve) == 101


def test_a_study_that_is_stored_in_parts_is_the_same_bytes(tmp_path, config, workdir):
    runs = make_study().runs
    save(collect(config, workdir), tmp_path / "whole")
    first, second = tmp_path / "first", tmp_path / "second"
    for i, run in enumerate(runs):
        write_run(second if i % 2 else first, run)
    with pytest.raises(ValueError, match="lacks 4 of 9 runs"):
        collect(config, first)
    part = collect(config, first, partial=True)
    assert (len(part.runs), part.missing) == (5, 4)
    save(part, tmp_path / "part")
    stored = load(tmp_path / "part")
    assert stored.missing == 4
    with pytest.raises(ValueError, match="lacks 4 of its runs"):
        contents(stored, paper_csv=None, resamples=10)
    save(collect(config, second, stored=stored), tmp_path / "part")
    for name in FILES:
        whole, parts = ((tmp_path / x / name).read_bytes() for x in ("whole", "part"))
        assert whole == parts


def test_stored_runs_of_another_config_are_not_mixed_with_new_ones(
    tmp_path, config, workdir
):
    runs = make_study().runs
    for run in runs[1:]:
        write_run(tmp_path / "new", run, config={"data": {"name": "camvid"}})
    whole = collect(config, workdir)
    stored = dataclasses.replace(whole, runs=runs[:1])
    with pytest.raises(ValueError, match=r'data.name is "camvid" in the new runs'):
        collect(config, tmp_path / "new", stored=stored)
    # A field that only one of the two has, and one that other arms change.
    for place, run, fields, message in (
        ("more", 3, {"augment": {"flip": 0.5}}, 'flip is 0.5 .*, "missing" in the st'),
        ("steps", 1, {"total_steps": 90}, "total_steps is 90 .*, 100 in the stored"),
    ):
        write_run(tmp_path / place, runs[run], config=fields)
        rest = tuple(x for x in runs if x is not runs[run])
        stored = dataclasses.replace(whole, runs=rest)
        with pytest.raises(ValueError, match=message):
            collect(config, tmp_path / place, stored=stored)
    stored = dataclasses.replace(whole, runs=runs[:1])
    other = dataclasses.replace(runs[0], sampler={"name": "random", "batch_max": 9})
    stored = dataclasses.replace(stored, runs=(other,))
    with pytest.raises(ValueError, match="the stored run random4/seed=0 has"):
        collect(config, tmp_path / "new", stored=stored)
    # The sweep changes one more field than the stored run has.
    config.write_text(CONFIG.replace("{}", "{'augment.flip': 0.5}", 1))
    stored = dataclasses.replace(whole, runs=runs[:1])
    with pytest.raises(ValueError, match=r"seed=0 has .*sweep says .*'augment\.flip'"):
        collect(config, tmp_path / "none", stored=stored, partial=True)


def test_smoke_takes_one_seed_of_the_first_comparison(config, tmp_path):
    for run in make_study().runs[:6]:
        # Steps of its own: of overrides, smoke keeps those of sampler and loss.
        write_run(tmp_path / "smoke", run, config={"total_steps": 4})
    study = collect(config, tmp_path / "smoke", smoke=True)
    assert study.comparisons == (("cl3", "random4"),)
    assert [run.seed for run in study.runs] == [0, 0]


def test_missing_runs_are_named(config, workdir):
    for key in ("cl3/seed=1", "random4/seed=2"):
        (workdir / key / "results.json").unlink()
    with pytest.raises(
        ValueError, match=r"lacks 2 of 9 runs of poles: random4/seed=2, cl3/seed=1"
    ):
        collect(config, workdir)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"code": "other"}, "different code"),
        ({"split": "val"}, "different split"),
        ({"data": "half of it"}, "different data"),
        ({"devices": "8 x gpu"}, "different devices"),
        ({"per_image": np.ones((5, 3, 3), np.int32)}, "different confusions"),
        ({"per_image": np.ones((12, 3, 3), np.int32)}, "different labels"),
        ({"class_names": ("road", "car", "post")}, "different classes"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(
    config, workdir, tmp_path, changed, what
):
    sampler = {"name": "balance_batch", "batch_max": 4, "batch_cl": 3}
    kept = dict(sampler=sampler, images_seen=300, error=(0.1, 0.2, 0.2))
    odd = make_run("cl3", 1, **kept | changed)
    (workdir / "cl3/seed=1").rename(tmp_path / "away")
    write_run(workdir, odd)
    match = rf"{what}.* are never mixed; random4/seed=0 differs from cl3/seed=1\."
    with pytest.raises(ValueError, match=match):
        collect(config, workdir)


def test_code_that_was_accepted_is_one_and_is_said(config, workdir, tmp_path):
    odd = next(r for r in make_study().runs if r.key == "cl3/seed=1")
    (workdir / odd.key).rename(tmp_path / "away")
    old = "c0de" * 16
    write_run(workdir, dataclasses.replace(odd, code="new"), accepted_code=[old])
    study = collect(config, workdir)
    save(study, tmp_path)
    assert same(load(tmp_path), study)
    said = tables.provenance(load(tmp_path))
    assert "code `new` (accepted by hand as the same: `c0dec0dec0de`)" in said
    records = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [r.get("accepted_code") for r in records[3:6]] == [None, [old], None]
    (workdir / "cl3/seed=2").rename(tmp_path / "away too")
    third = next(r for r in make_study().runs if r.key == "cl3/seed=2")
    write_run(workdir, dataclasses.replace(third, code="unknown"))
    with pytest.raises(ValueError, match="results of different code are never mixed"):
        collect(config, workdir)


def test_file_of_weights_may_be_renamed_between_runs(config, workdir, tmp_path):
    (workdir / "cl3/seed=1").rename(tmp_path / "away")
    run = next(r for r in make_study().runs if r.key == "cl3/seed=1")
    model = {"name": "unet", "pretrained": "OTHER/renamed.safetensors"}
    write_run(workdir, run, config={"model": model})
    setting = collect(config, workdir).setting
    assert setting["model.pretrained"] == "weights.safetensors"


def test_other_configs_are_refused(config, workdir, tmp_path):
    (workdir / "cl3/seed=1").rename(tmp_path / "away")
    run = next(r for r in make_study().runs if r.key == "cl3/seed=1")
    write_run(workdir, run, config={"model": {"name": "fcn", "pretrained": None}})
    with pytest.raises(
        ValueError,
        match=r"model.name is 'fcn' in cl3/seed=1, 'unet' in random4/seed=0",
    ):
        collect(config, workdir)
    (workdir / "cl3/seed=1").rename(tmp_path / "away too")
    write_run(workdir, dataclasses.replace(run, total_steps=50))
    # Which the arm with steps of its own must not hide.
    with pytest.raises(ValueError, match="total_steps is 50 in cl3/seed=1, 100 in ran"):
        collect(config, workdir)
    (workdir / "cl3-images/seed=0").rename(tmp_path / "away as well")
    run = next(r for r in make_study().runs if r.key == "cl3-images/seed=0")
    write_run(workdir, dataclasses.replace(run, total_steps=50))
    with pytest.raises(
        ValueError, match=r"json: total_steps is 50, the sweep says 133"
    ):
        collect(config, workdir)


def test_confusions_of_another_evaluation_are_refused(config, workdir):
    path = workdir / "cl3/seed=1/confusions.npz"
    np.savez_compressed(path, per_image=np.ones((12, 3, 3), np.int32))
    with pytest.raises(ValueError, match="does not add up to the confusion"):
        collect(config, workdir)


def test_files_that_lack_something_are_refused(tmp_path, config):
    with pytest.raises(ValueError, match=r"study\.json is missing; python -m"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"pole\.py is missing; known .* poles"):
        collect(config.with_name("pole.py"), tmp_path)
    config.write_text("def sweep():\n    return []\n")
    with pytest.raises(ValueError, match="has no 'get_config'"):
        collect(config, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_collections_are_refused(tmp_path, name):
    """The same arms, seeds and images, as when a study is run once more."""
    study = make_study()
    runs = [dataclasses.replace(run, seconds=61.0) for run in study.runs]
    again = np.roll(runs[0].per_image, 1, axis=2)
    runs[0] = dataclasses.replace(runs[0], per_image=again)
    save(study, tmp_path / "a")
    save(dataclasses.replace(study, runs=tuple(runs)), tmp_path / "b")
    (tmp_path / "b" / name).rename(tmp_path / "a" / name)
    odd = "runs.json" if name == "study.json" else name
    with pytest.raises(ValueError, match=rf"/a/{odd} is .* of another collection than"):
        load(tmp_path / "a")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_is_named(tmp_path, name):
    save(make_study(), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"/{name} is damaged.* writes all anew"):
        load(tmp_path)


def test_a_full_disk_leaves_what_was_stored(tmp_path, full_disk):
    study = make_study()
    save(study, tmp_path)
    num_bytes = (tmp_path / "runs.json").stat().st_size
    assert num_bytes < (tmp_path / "confusions.npz").stat().st_size
    runs = tuple(dataclasses.replace(run, seconds=1.0) for run in study.runs)
    with full_disk(num_bytes), pytest.raises(OSError, match="File too large"):
        save(dataclasses.replace(study, runs=runs), tmp_path)
    assert same(load(tmp_path), study)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("study.json", lambda study: study.pop("paper"), "missing .* 'paper'"),
        ("runs.json", lambda run: run.pop("total_steps"), "missing .* 'total_steps'"),
        ("runs.json", lambda run: run.update(host="a"), "unexpected .* 'host'"),
    ],
)
def test_what_was_stored_with_other_fields_is_refused(tmp_path, name, change, problem):
    save(make_study(), tmp_path)
    about, runs = (json.loads((tmp_path / file).read_text()) for file in FILES[:2])
    change(about if name == "study.json" else runs["runs"][3])
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    digest = hashlib.sha256((tmp_path / "runs.json").read_bytes()).hexdigest()
    about["sha256"]["runs.json"] = digest
    (tmp_path / "study.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match=rf"/{name}: .* {problem}; other .* writes all anew"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("optimizer.name", {}),
        ("loss.gamma", {"loss": [{"name": "focal", "gamma": 2.0}]}),
        ("model.norm.name", {"model": {"norm": None}}),
    ],
)
def test_a_field_that_a_run_lacks_is_named(tmp_path, config, field, workdir):
    text = CONFIG.replace('"total_steps": 133', f'"{field}": 1')
    config_path = tmp_path / "poles.py"
    config_path.write_text(text)
    run = make_run("cl3-images", 0)
    (workdir / run.key).rename(tmp_path / "away")
    sampler = {"name": "balance_batch", "batch_max": 4, "batch_cl": 3}
    folder = write_run(
        workdir, dataclasses.replace(run, sampler=sampler), config=config
    )
    problem = rf"{folder}/config\.json: {field} is missing, the sweep says 1; .* Delete"
    with pytest.raises(ValueError, match=problem):
        collect(config_path, workdir)


def test_damaged_files_of_a_run_are_named(config, workdir):
    metrics = workdir / "cl3/seed=1/metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text('{"step": 1, "lo\n' + whole)
    with pytest.raises(ValueError, match=r"seed=1/metrics\.jsonl: line 1 is damaged"):
        collect(config, workdir)
    # A last line that a kill cut is of a step that nobody asks for.
    metrics.write_text(whole + '{"step": 1, "lo')
    collect(config, workdir)
    npz = workdir / "cl3/seed=2/confusions.npz"
    npz.write_bytes(npz.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"seed=2/confusions\.npz is damaged; delete"):
        collect(config, workdir)


def test_arms_without_pairs_are_refused():
    study = make_study()
    with pytest.raises(ValueError, match=r"'cl9'; the runs have random4, cl3, cl3-im"):
        study.pairs("cl9", "random4")
    short = dataclasses.replace(study, runs=study.runs[1:])
    for runs in short.pairs("cl3", "random4"):
        assert [run.seed for run in runs] == [1, 2]
    other = dataclasses.replace(study.runs[0], seed=7)
    alone = dataclasses.replace(study, runs=(other, *study.runs[3:]))
    with pytest.raises(ValueError, match=r"seeds \[0, 1, 2\], its baseline .* \[7\]"):
        alone.pairs("cl3", "random4")
