import json

import jax
import numpy as np
import pytest

from configs import folder
from segloss.config import (
    Inference,
    change_fields,
    check_same_config,
    parse_config,
    read_config,
    write_config,
)
from segloss.errors import SeglossError
from segloss.train import make_setup


def test_config_that_was_written_is_the_same_when_read(tiny_config, tmp_path):
    write_config(tiny_config, tmp_path)
    check_same_config(tiny_config, tmp_path)
    check_same_config(read_config(tmp_path), tmp_path)
    # How often it evaluates and how it loads may change, the rest may not.
    tiny_config.evaluate_every_steps = 7
    tiny_config.evaluate.batch_size = 3
    tiny_config.data.num_threads = 5
    tiny_config.data.num_workers = 2
    tiny_config.data.on_bad_sample = "skip"
    check_same_config(tiny_config, tmp_path)
    tiny_config.seed = 9
    with pytest.raises(ValueError, match="another config: seed was 0, is 9"):
        check_same_config(tiny_config, tmp_path)


def test_fields_that_a_stored_config_lacks_have_their_defaults(tmp_path):
    config = folder.get_config("smoke").unlock()
    for field in ("label_suffix", "alpha", "nodata", "max_image_pixels"):
        del config.data[field]
    write_config(config, tmp_path)
    check_same_config(folder.get_config("smoke"), tmp_path)
    config.data.alpha = "void"
    with pytest.raises(ValueError, match=r"data\.alpha was 'drop', is 'void'"):
        check_same_config(config, tmp_path)


def test_config_of_a_run_from_before_a_field_came_is_completed(tiny_config, tmp_path):
    del tiny_config.data.num_workers
    del tiny_config.data.on_bad_sample
    for field in ("scales", "flip", "window_hw", "window_stride", "max_pixels"):
        del tiny_config.evaluate[field]
    write_config(tiny_config, tmp_path)
    read = read_config(tmp_path)
    parse_config(read)
    assert (read.data.num_workers, read.data.on_bad_sample) == (0, "raise")
    assert parse_config(read).evaluate.inference == Inference(
        scales=(1.0,), flip=False, window_hw=None, max_pixels=2**21
    )


def test_fields_of_a_config_are_changed_by_their_names(tiny_config, tmp_path):
    write_config(tiny_config, tmp_path)
    changed = change_fields(
        read_config(tmp_path),
        [
            "evaluate.scales=0.75,1",
            "evaluate.flip=True",
            "evaluate.window_hw=32,64",
            "evaluate.checkpoint=best",
            "data.data_dir=/a=b",
        ],
    )
    assert parse_config(changed).evaluate.inference == Inference(
        scales=(0.75, 1), flip=True, window_hw=(32, 64)
    )
    assert changed.evaluate.checkpoint == "best"
    assert changed.data.data_dir == "/a=b"
    assert not tiny_config.evaluate.flip
    one_scale = change_fields(tiny_config, ["evaluate.scales=0.5"])
    assert one_scale.evaluate.scales == (0.5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluate.flop=True", "no field 'evaluate.flop'; known are .*split"),
        ("evaluation.flip=True", "no field 'evaluation.flip'; known are "),
        ("total_steps=many", "total_steps=many: the value must have the type of 4"),
        ("seed", "--set=seed: "),
    ],
)
def test_change_that_cannot_be_made_is_named(tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        change_fields(tiny_config, [change])


def test_config_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="train with this --workdir first"):
        read_config(tmp_path)


def test_stored_config_that_is_incomplete_or_damaged_is_named(tiny_config, tmp_path):
    write_config(tiny_config, tmp_path)
    path = tmp_path / "config.json"
    whole = path.read_text()
    fields = json.loads(whole)
    del fields["evaluate"]
    path.write_text(json.dumps(fields))
    remedy = "restore it from a copy; evaluation, prediction and export also take"
    for content, problem in (
        (json.dumps(fields).encode(), r"it lacks evaluate"),
        (b"{}", r"it lacks loss, data, sampler, .*"),
        (b"[]", "it must hold an object, got a list"),
        (b"null", "it must hold an object, got null"),
        (whole[:40].encode(), "Unterminated string .*|Expecting .*"),
        (b"", "Expecting value: .*"),
        (whole.encode("utf-16"), "'utf-8' codec can't decode byte 0xff .*"),
        (json.dumps(fields | {"evaluate": 3}).encode(), "evaluate is no section"),
    ):
        path.write_bytes(content)
        message = rf"^.*/config.json is damaged \(({problem})\); {remedy} --config\.$"
        with pytest.raises(SeglossError, match=message):
            read_config(tmp_path)


def test_sections_within_sections_are_the_same_when_read(tiny_config, tmp_path):
    with tiny_config.ignore_type():
        tiny_config.model = dict(
            name="multi_scale",
            scales=(0.5, 1.0),
            network=dict(name="unet", depth=1, width=4),
        )
        tiny_config.optimizer.groups = (
            dict(match="head", learning_rate_factor=10.0),
            dict(match="norm", frozen=True),
        )
    write_config(tiny_config, tmp_path)
    read = read_config(tmp_path)
    check_same_config(read, tmp_path)
    before, after = make_setup(tiny_config), make_setup(read)
    assert before.model == after.model
    assert after.model.scales == (0.5, 1.0)
    assert after.model.network.axis_name == "devices"
    params = {"head": {"kernel": np.ones(2)}, "norm": {"scale": np.ones(3)}}
    state, same = (setup.optimizer.init(params) for setup in (before, after))
    assert jax.tree.structure(state) == jax.tree.structure(same)
    tiny_config.optimizer.groups[1]["frozen"] = False
    with pytest.raises(ValueError, match=r"another config: optimizer.groups was \["):
        check_same_config(tiny_config, tmp_path)
