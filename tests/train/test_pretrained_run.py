"""Runs that begin with the weights of a file."""

import dataclasses
import functools
import hashlib
import io
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from rich.console import Console

from segloss.config import (
    check_same_config,
    make_configured_model,
    parse_config,
    read_config,
    write_config,
)
from segloss.train import Stopped, loop, make_setup, train
from segloss.train.first_state import make_fresh_state
from segloss.train.start import find_start
from segloss.train.step import make_state
from segloss.trained import evaluate_run
from segloss.trained.checkpoints import Checkpoints

pytestmark = pytest.mark.shared_out(by="module")


def write_weights(config, path, *, num_classes):
    """Random weights for the network of a config; returns them by path."""
    model = make_configured_model(parse_config(config), num_classes)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    arrays |= {name: np.abs(a) for name, a in arrays.items() if name.endswith("/var")}
    safetensors.numpy.save_file(arrays, path)
    return arrays


def start_of(config, workdir, save=False):
    """The start of a run, its variables as paths, and what the run printed."""
    console = Console(file=io.StringIO())
    setup = make_setup(config)
    start = find_start(setup, config, workdir, console)
    if save:
        run = loop._Run(setup, workdir, console, start, on_step=lambda step: None)
        checkpoints = Checkpoints(workdir / "checkpoints")
        write_config(config, workdir)
        host = jax.tree.map(np.asarray, start.state.replace(step=np.int32(1)))
        checkpoints.save(host, mean_iou=None, meta=run._meta())
        checkpoints.close()
    variables = traverse_util.flatten_dict(start.state.variables, sep="/")
    return variables, start, console.file.getvalue()


def test_fresh_run_takes_the_weights_and_one_that_goes_on_does_not(
    tmp_path, tiny_config
):
    path = tmp_path / "unet.safetensors"
    arrays = write_weights(tiny_config, path, num_classes=5)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tiny_config.model.pretrained = str(path)
    setup = make_setup(tiny_config)
    fresh = make_state(setup.model, setup.optimizer, seed=0, image_hw=(32, 32))
    fresh = traverse_util.flatten_dict(fresh.variables, sep="/")
    with pytest.warns(
        UserWarning, match="has 5 classes, the network 21; the class head"
    ):
        variables, start, said = start_of(tiny_config, tmp_path / "run", save=True)
    assert variables.keys() == fresh.keys() == arrays.keys()
    for name, array in variables.items():
        head = name.startswith("params/head/")
        np.testing.assert_array_equal(array, (fresh if head else arrays)[name])
    said = said.replace("\n", "")
    assert (
        f"starts from the weights in {path}: segloss, 34 arrays, 0.00 M param" in said
    )
    assert digest[:16] in said
    assert start.pretrained == {"file": str(path), "sha256": digest}
    path.unlink()
    restored, start, said = start_of(tiny_config, tmp_path / "run")
    for name, array in restored.items():
        np.testing.assert_array_equal(array, variables[name])
    assert start.pretrained == {"file": str(path), "sha256": digest}
    assert not said


def test_run_goes_on_and_is_used_after_its_file_was_moved_and_deleted(
    tmp_path, tiny_config, capsys
):
    path, moved = tmp_path / "unet.safetensors", tmp_path / "weights.safetensors"
    write_weights(tiny_config, path, num_classes=21)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tiny_config.model.pretrained = str(path)
    tiny_config.checkpoint_every_steps = 4

    def stop(step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(tiny_config, tmp_path / "run", on_step=stop)
    path.rename(moved)
    tiny_config.model.pretrained = str(tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"of other weights")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(ValueError, match=r"other\.safetensors differs from"):
        train(tiny_config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before

    tiny_config.model.pretrained = str(moved)
    capsys.readouterr()
    results = train(tiny_config, tmp_path / "run")
    said = capsys.readouterr().out.replace("\n", "")
    assert f"the run started from the weights in {path}, SHA-256 {digest[:16]}" in said
    assert results["pretrained"] == {"file": str(path), "sha256": digest}
    assert read_config(tmp_path / "run").model.pretrained == str(moved)
    moved.unlink()
    config = read_config(tmp_path / "run")
    for again in (
        train(config, tmp_path / "run"),
        evaluate_run(config, tmp_path / "run"),
    ):
        assert again["summary"] == results["summary"]
        assert again["pretrained"] == results["pretrained"]
    # Its place on another machine, where it was never copied to.
    tiny_config.model.pretrained = str(tmp_path / "absent" / "unet.safetensors")
    check_same_config(tiny_config, tmp_path / "run")
    assert train(tiny_config, tmp_path / "run")["summary"] == results["summary"]


def test_file_that_cannot_be_used_stops_before_the_first_step(tmp_path, tiny_config):
    tiny_config.model.pretrained = str(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match="there is no file and no run "):
        train(tiny_config, tmp_path / "run")
    tiny_config.model.pretrained = str(tmp_path / "wide.safetensors")
    wide = tiny_config.copy_and_resolve_references()
    wide.model.width *= 2
    write_weights(wide, tmp_path / "wide.safetensors", num_classes=21)
    with pytest.raises(ValueError, match="do not fit the network"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_file_must_be_a_path(tiny_config):
    del tiny_config.model.pretrained
    tiny_config.model.pretrained = 3
    with pytest.raises(ValueError, match=r"^config\.model\.pretrained must be .* 3\.$"):
        make_setup(tiny_config)


def test_weights_chosen_later_are_no_part_of_a_run(tmp_path, tiny_config):
    config = tiny_config.copy_and_resolve_references()
    del config.model.pretrained  # as before there was the field
    write_config(config, tmp_path)
    check_same_config(tiny_config, tmp_path)
    tiny_config.model.pretrained = "late.npz"
    with pytest.raises(ValueError, match=r"model\.pretrained was None, is 'late.npz'"):
        check_same_config(tiny_config, tmp_path)


def save_run(config, workdir, class_names, *, scores=(None,)):
    """Writes a run of its own seed, with a checkpoint for each of the scores.

    Returns the variables of each checkpoint, by path.
    """
    config = config.copy_and_resolve_references()
    config.seed = 7
    model = make_configured_model(parse_config(config), len(class_names))
    setup = dataclasses.replace(make_setup(config), model=model)
    state = jax.tree.map(np.asarray, make_fresh_state(setup))
    write_config(config, workdir)
    saved = []
    checkpoints = Checkpoints(workdir / "checkpoints")
    for step, score in enumerate(scores, start=1):
        state = jax.tree.map(lambda x: x + np.ones((), x.dtype), state)
        state = state.replace(step=np.int32(step))
        checkpoints.save(state, mean_iou=score, meta={"class_names": class_names})
        saved.append(traverse_util.flatten_dict(state.variables, sep="/"))
    checkpoints.close()
    return saved


def names_of(config):
    return list(make_setup(config).dataset.class_names)


def test_a_run_starts_from_the_best_checkpoint_of_another(tmp_path, tiny_config):
    source = tmp_path / "source"
    tiny_config.evaluate.checkpoint = "best"
    names = names_of(tiny_config)
    best, newest = save_run(tiny_config, source, names, scores=[0.5, 0.4])
    tiny_config.evaluate.checkpoint = "newest"  # that of the other run counts
    tiny_config.model.pretrained = str(source)
    variables, start, said = start_of(tiny_config, tmp_path / "run", save=True)
    assert variables.keys() == best.keys()
    for name, array in variables.items():
        np.testing.assert_array_equal(array, best[name])
        assert (array != newest[name]).all()
    assert start.state.step == 0
    digest = start.pretrained["sha256"]
    assert start.pretrained == {"file": str(source), "step": 1, "sha256": digest}
    assert re.fullmatch("[0-9a-f]{64}", digest)
    size = sum(x.size for name, x in best.items() if name.startswith("params/"))
    assert said == (
        f"starts from the weights in {source} at step 1: takes {len(best)} of "
        f"{len(best)} arrays, {size / 1e6:.2f} M parameters, SHA-256 {digest[:16]}\n"
    )
    # The run goes on without the other, and with a copy of it, but not with a third.
    shutil.copytree(source, tmp_path / "copy")
    save_run(tiny_config, tmp_path / "third", names, scores=[None, None])
    shutil.rmtree(source)
    for place in ("source", "copy"):
        tiny_config.model.pretrained = str(tmp_path / place)
        _, again, said = start_of(tiny_config, tmp_path / "run")
        assert (again.pretrained, said) == (start.pretrained, "")
    tiny_config.model.pretrained = str(tmp_path / "third")
    with pytest.raises(ValueError, match=r"/third differs from .*/source, the weights"):
        start_of(tiny_config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said_of_it"),
    [
        pytest.param(lambda names: names[:5], "added ", id="fewer"),
        pytest.param(
            lambda names: ["car", *names[1:]],
            "added background; removed car",
            id="renamed",
        ),
    ],
)
def test_the_class_head_is_new_where_the_classes_differ(
    tmp_path, tiny_config, change, said_of_it
):
    names = names_of(tiny_config)
    (theirs,) = save_run(tiny_config, tmp_path / "source", change(names))
    fresh, _, _ = start_of(tiny_config, tmp_path / "fresh")
    tiny_config.model.pretrained = str(tmp_path / "source")
    variables, start, said = start_of(tiny_config, tmp_path / "run")
    head = {"params/head/kernel", "params/head/bias"}
    for name, array in variables.items():
        np.testing.assert_array_equal(array, (fresh if name in head else theirs)[name])
    assert f"takes {len(theirs) - 2} of {len(theirs)} arrays, " in said
    assert f"; draws 2 of the class head anew ({said_of_it}" in said
    # The optimizer starts anew as well, and knows the new weights.
    for array in jax.tree.leaves(start.state.opt_state):
        assert not np.asarray(array).any()


def test_a_run_of_another_network_is_refused(tmp_path, tiny_config):
    wide = tiny_config.copy_and_resolve_references()
    wide.model.width *= 2
    save_run(wide, tmp_path / "source", names_of(tiny_config))
    tiny_config.model.pretrained = str(tmp_path / "source")
    message = (
        r"the run .*/source has another network: model\.width was \d+, is \d+; "
        r"\d+ arrays do not fit \(\S+ is \(.*\), must be \(.*\), .*\.\.\.\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        train(tiny_config, tmp_path / "run")
    tiny_config.model.pretrained = str(tmp_path)
    with pytest.raises(ValueError, match="must be a file of weights, or the workdir"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
