"""Runs that are resumed with another config or another dataset than they began with."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from segloss.config import check_same_config, read_config, write_config
from segloss.train import train
from segloss.trained.checkpoints import Checkpoints

pytestmark = pytest.mark.shared_out(by="module")


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a run of 4 steps."""
    return shutil.copytree(finished_run, tmp_path / "run")


def files_of(run):
    return {x: x.stat().st_mtime_ns for x in run.rglob("*")}


def newest_meta(run):
    directory = run / "checkpoints"
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.read(items=()).meta


def test_a_run_that_lost_its_config_is_not_resumed(tiny_config, run):
    (run / "config.json").unlink()
    message = (
        "/run/config.json is missing, so the config of checkpoint 4 is not known; "
        "restore it from a copy, or choose another --workdir; "
        f"--config.model.pretrained={run} there starts from the weights of this run.$"
    )
    with pytest.raises(ValueError, match=message):
        train(tiny_config, run)


def test_a_run_without_checkpoints_may_be_deleted(tiny_config, tmp_path):
    write_config(tiny_config, tmp_path)
    tiny_config.sampler.batch_max = 12
    end = f"It has no checkpoint yet: to start it anew, delete {tmp_path}."
    with pytest.raises(ValueError, match=f"{end}$"):
        train(tiny_config, tmp_path)


@pytest.mark.parametrize("with_changes", [False, True])
def test_a_run_of_another_seed_in_the_same_folder_is_refused(
    tiny_config, run, with_changes
):
    before = files_of(run)
    tiny_config.seed = 1
    tiny_config.data.crop_hw = (32, 16)
    tiny_config.sampler.batch_max = 12
    message = (
        r"/run holds a run with another config: data.crop_hw was \[32, 32\], is "
        r"\[32, 16\]; sampler.batch_max was 9, is 12; seed was 0, is 1. The seed, the "
        "sampler, the crop windows and the model of a run never change: its steps are "
        "positions in the batches that follow from them, and its weights are of that "
        "model. Choose another --workdir, or use the config of that run.$"
    )
    with pytest.raises(ValueError, match=message):
        train(tiny_config, run, resume_with_changes=with_changes)
    assert files_of(run) == before


def test_a_changed_config_is_shown_and_resumed_only_on_request(
    tiny_config, run, capsys
):
    tiny_config.total_steps = 5
    tiny_config.loss.name = "focal_loss"
    changed = "loss.name was 'softmax_cross_entropy', is 'focal_loss'"
    message = (
        f"/run holds a run with another config: {changed}. "
        "Choose another --workdir, or use the config of that run, or resume it with "
        "these changes by --resume_with_changes."
    )
    with pytest.raises(ValueError, match=f"{message}$"):
        train(tiny_config, run)
    capsys.readouterr()
    results = train(tiny_config, run, resume_with_changes=True)
    said = f"from step 4 on, the config is changed: {changed}\n"
    assert said in capsys.readouterr().out
    # It is the run's config from now on, and its checkpoints tell of the change.
    assert check_same_config(tiny_config, run) == []
    change = {
        "step": 4,
        "field": "loss.name",
        "before": "softmax_cross_entropy",
        "now": "focal_loss",
    }
    assert newest_meta(run)["changes"] == [change]
    assert results["changes"] == [change]
    assert json.loads((run / "results.json").read_text())["changes"] == [change]


def test_an_optimizer_whose_state_has_another_form_is_refused(tiny_config, run):
    with tiny_config.ignore_type():
        tiny_config.optimizer = dict(name="sgd", momentum=0.9)
    message = (
        "/run: the state of the optimizer at step 4 cannot be used with these changes: "
        ".*optimizer.name was 'adamw', is 'sgd'.*; undo those that change its form, or "
        "start a new run from these weights: choose another --workdir, and add "
        f"--config.model.pretrained={run}.$"
    )
    with pytest.raises(ValueError, match=message):
        train(tiny_config, run, resume_with_changes=True)


def test_a_run_is_resumed_with_another_loss_scale(tiny_config, run):
    for step, loss_scale in enumerate(("dynamic", 512.0, None), start=5):
        tiny_config.total_steps = step
        with tiny_config.unlocked(), tiny_config.ignore_type():
            tiny_config.optimizer.loss_scale = loss_scale
        train(tiny_config, run, resume_with_changes=True)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    scales = {x["step"]: x.get("loss_scale") for x in lines if "loss" in x}
    assert scales == {1: None, 2: None, 3: None, 4: None, 5: 65536, 6: 512, 7: None}


def add_a_sample(root):
    for kind in ("images", "labels"):
        shutil.copy(root / f"train/{kind}/a.png", root / f"train/{kind}/z.png")


def edit_a_label(root):
    path = root / "train/labels/a.png"
    labels = np.array(Image.open(path))
    labels[5, 7] = 2
    Image.fromarray(labels).save(path)


def void_is_250(root):
    for path in root.glob("*/labels/*.png"):
        labels = np.array(Image.open(path))
        labels[labels == 255] = 250
        Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ("change", "fields", "what"),
    [
        pytest.param(
            add_a_sample,
            {},
            "train had 4 samples, has 5; train had 7,584 pixels, has 9,456",
            id="sample_added",
        ),
        pytest.param(
            edit_a_label, {}, "the contents of images or labels", id="label_edited"
        ),
        pytest.param(
            void_is_250,
            {"ignore_label": 250},
            "the void label was 255, is 250",
            id="other_void_label",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*void")
def test_a_run_is_told_what_changed_in_its_dataset(
    finished_folder_run, tmp_path, change, fields, what
):
    root = shutil.copytree(finished_folder_run.parent / "shapes", tmp_path / "shapes")
    run = shutil.copytree(finished_folder_run, tmp_path / "run")
    config = read_config(run)
    config.data.root, config.data.data_dir = str(root), str(tmp_path / "datasets")
    config.data.update(fields)
    change(root)
    with pytest.raises(ValueError, match="/run: the dataset changed") as refused:
        train(config, run, resume_with_changes=True)
    end = f"since checkpoint 4: {what}; restore it, or choose another --workdir."
    assert str(refused.value).endswith(end)
