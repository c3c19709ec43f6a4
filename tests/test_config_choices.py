"""Fields that a config file lacks, and names that change, from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import camvid, demo, folder, folder_balance_batch
from segloss.config import (
    as_workdir,
    change_fields,
    follow_names,
    parse_config,
    read_config,
    write_config,
)
from segloss.errors import explain
from segloss.train import CHOICES

ROOT = Path(__file__).parents[1]


def test_a_changed_model_drops_what_only_the_old_one_took(capsys):
    config = change_fields(
        demo.get_config(), ["model.name=deeplab_v3", "model.stage_sizes=(1, 1, 1, 1)"]
    )
    changed = follow_names(config, ["model.name", "model.stage_sizes"], CHOICES)
    assert changed.model.to_dict() == dict(
        name="deeplab_v3",
        width=16,
        norm="batch",
        pretrained=None,
        stage_sizes=(1, 1, 1, 1),
    )
    assert capsys.readouterr().out == (
        "model.name=deeplab_v3: keeps norm='batch', width=16; drops depth=4, "
        "input_stride=2, unknown to deeplab_v3\n"
    )
    # What was not chosen anew is as it was, and the original too.
    assert changed.optimizer == demo.get_config().optimizer
    assert config.model.depth == 4


@pytest.mark.parametrize(
    ("config", "changes", "section", "fields"),
    [
        (
            folder_balance_batch,
            ["sampler.name=random"],
            "sampler",
            dict(name="random", batch_max=16),
        ),
        (
            folder,
            ["sampler.name=balance_batch", "sampler.batch_cl=4"],
            "sampler",
            dict(name="balance_batch", batch_max=16, batch_cl=4),
        ),
        (
            demo,
            ["loss.name=focal_loss", "loss.gamma=3"],
            "loss",
            dict(name="focal_loss", gamma=3),
        ),
        (
            demo,
            ["optimizer.name=sgd", "optimizer.b1=0.5"],
            "optimizer",
            # A given field is not dropped; training says that sgd has no b1.
            dict(name="sgd", weight_decay=1e-2, clip_norm=5.0, b1=0.5),
        ),
        (
            demo,
            ["schedule.name=constant"],
            "schedule",
            dict(name="constant", learning_rate=3e-3, warmup_steps=1 / 24),
        ),
        (demo, ["loss={'name': 'soft_iou'}"], "loss", dict(name="soft_iou")),
        (camvid, ["loss={'name': 'soft_iou'}"], "loss", dict(name="soft_iou")),
    ],
)
def test_each_section_follows_its_name(config, changes, section, fields):
    given = [change.split("=")[0] for change in changes]
    changed = change_fields(config.get_config(), changes)
    assert follow_names(changed, given, CHOICES)[section].to_dict() == fields


def test_a_list_of_losses_replaces_one_and_is_replaced(tiny_config):
    two = "loss=[{'name': 'soft_dice'}, {'name': 'focal_loss', 'gamma': 1.0}]"
    changed = parse_config(change_fields(tiny_config, [two]))
    assert [term.name for term in changed.loss] == ["soft_dice", "focal_loss"]
    with pytest.raises(ValueError, match="loss is a section; set one of its fields"):
        change_fields(tiny_config, ["loss=soft_dice"])


def test_a_replaced_section_says_which_fields_it_drops(tiny_config, capsys):
    changed = change_fields(tiny_config, ["model={'name': 'unet', 'width': 8}"])
    assert changed.model.to_dict() == dict(name="unet", width=8)
    assert capsys.readouterr().out == (
        "--set=model={...}: replaces the whole, drops depth=1, input_stride=2, "
        "norm='batch', pretrained=None\n"
    )


def test_optional_fields_may_be_set_in_a_config_that_lacks_them(tiny_config, tmp_path):
    changes = ["evaluate.patience=3", "mapping=shard_map", "evaluate_every_steps=0.25"]
    changed = parse_config(change_fields(tiny_config, changes))
    assert changed.evaluate.patience == 3
    assert changed.mapping == "shard_map"
    assert changed.evaluate_every_steps == 1
    # Also in one that was stored with numbers of steps.
    with tiny_config.ignore_type():
        tiny_config.evaluate_every_steps = 2
    write_config(tiny_config, tmp_path)
    changed = change_fields(read_config(tmp_path), changes)
    assert parse_config(changed).evaluate_every_steps == 1


def run(*args, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, args)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_command_line_takes_a_name_and_fields_that_the_config_lacks(tmp_path):
    done = run(
        f"--workdir={tmp_path / 'run'}",
        "--config=configs/demo.py:smoke",
        "--config.model.name=fcn",
        "--set=loss.name=focal_loss",
        "--config.loss.gamma=2",
        "--config.loss.gama=3",
    )
    assert done.returncode == 1
    assert "model.name=fcn: keeps norm=" in done.stdout
    assert "loss.name=focal_loss: keeps no other field\n" in done.stdout
    assert done.stderr.startswith(
        "error: loss: focal_loss has no hyperparameter 'gama'"
    )
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_empty_workdir_or_one_that_orbax_cannot_read_is_refused(tmp_path):
    config = "--config=configs/demo.py:smoke"
    assert run(config, "--workdir=").stderr == (
        "error: --workdir is empty; give the directory of the run.\n"
    )
    done = run(config, f"--workdir={tmp_path / 'lr[1]'}")
    assert "checkpoints cannot be read from a path with '[' in it" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a[1]", "a\\b", "a*b", "what?"])
def test_a_workdir_must_not_be_a_pattern(tmp_path, name, monkeypatch):
    with pytest.raises(ValueError, match="checkpoints cannot be read from a path with"):
        as_workdir(tmp_path / name)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ValueError, match="checkpoints cannot be read from a path with"):
        as_workdir("run")


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; choose a directory"):
        as_workdir(tmp_path / "file")
    assert as_workdir(f"{tmp_path}/a b,ä]{{1}}") == tmp_path / "a b,ä]{1}"


def test_a_workdir_must_be_utf_8(tmp_path):
    with pytest.raises(ValueError, match=r"/a\\udcff: the path must be UTF-8"):
        as_workdir(f"{tmp_path}/a\udcff")


def test_a_workdir_in_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop") as refused:
        as_workdir(tmp_path / "loop")
    assert explain(refused.value) == (
        f"{tmp_path}/loop: Too many levels of symbolic links; choose a path without a "
        "loop of links."
    )


def test_the_home_folder_is_expanded(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_workdir("~/runs/a") == tmp_path / "runs/a"
    assert as_workdir("a/~b") == Path("a/~b")
    tiny_config.data.data_dir = "~/datasets"
    tiny_config.model.pretrained = "~/weights.npz"
    parsed = parse_config(tiny_config)
    assert parsed.data.dataset.hyperparameters["data_dir"] == f"{tmp_path}/datasets"
    assert parsed.pretrained == f"{tmp_path}/weights.npz"
    config = folder.get_config()
    config.data.root = "~/photos"
    parsed = parse_config(config)
    assert parsed.data.dataset.hyperparameters["root"] == f"{tmp_path}/photos"
    with pytest.raises(ValueError, match="--workdir: ~nobody_of_that_name/x has no ho"):
        as_workdir("~nobody_of_that_name/x")
