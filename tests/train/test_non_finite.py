"""NaN and infinity: in a step, in the statistics of BatchNorm, in a checkpoint."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from runs import newest_state
from test_step import begin, first_batches

from segloss import trained
from segloss.config import read_config
from segloss.devices import first_replica, replicate, shard
from segloss.train import NonFiniteError, make_setup, train
from segloss.train.log import MetricWriter, StepMeter
from segloss.train.non_finite import describe_samples
from segloss.trained.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def poisoned_run(finished_run, tmp_path_factory):
    """A copy of a finished run with a NaN in one kernel and one running variance."""
    run = tmp_path_factory.mktemp("poisoned") / "run"
    shutil.copytree(finished_run, run)
    restored = newest_state(read_config(run), run)

    def poison(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        x = np.array(x)
        if name in ("params/head/kernel", "batch_stats/down0/conv1/norm/var"):
            x.flat[0] = np.nan
        return x

    state = jax.tree_util.tree_map_with_path(poison, restored.state)
    shutil.rmtree(run / "checkpoints")
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        checkpoints.save(state, mean_iou=0.5, meta=restored.meta)
    return run


@pytest.mark.parametrize(
    "use",
    [
        lambda config, run: trained.evaluate_run(config, run),
        lambda config, run: trained.predict(config, run, [str(run / "figures")]),
        lambda config, run: trained.export(config, run),
        lambda config, run: train(config, run),
        lambda config, run: train(with_weights_of(config, run), run.with_name("new")),
    ],
    ids=["evaluate", "predict", "export", "resume", "start from it"],
)
def test_checkpoint_with_nan_is_refused(poisoned_run, use):
    left = sorted(poisoned_run.parent.rglob("*"))
    with pytest.raises(ValueError, match="NaN or infinite") as refused:
        use(read_config(poisoned_run), poisoned_run)
    line = str(refused.value)
    assert line.startswith(f"checkpoint {poisoned_run / 'checkpoints' / '4'} has value")
    arrays = "1 of 4 in batch_stats/down0/conv1/norm/var, 1 of 84 in params/head/kernel"
    assert f"s that are NaN or infinite: {arrays}; its predictions" in line
    assert line.endswith(
        "; its predictions would mean nothing: move its folder away, so that another "
        "checkpoint is used, or train again with a lower learning rate."
    )
    assert sorted(poisoned_run.parent.rglob("*")) == left


def with_weights_of(config, run):
    with config.unlocked():
        config.model.pretrained = str(run)
    return config


def test_batch_stats_that_are_not_finite_stop_the_run(tiny_config, tmp_path):
    """Training never reads them, so that its loss and its gradient stay finite."""
    setup = make_setup(tiny_config)
    train_step, state = begin(setup, 1)
    stats = jax.tree.map(lambda x: x * np.inf, state.batch_stats)
    (batch,) = first_batches(setup, 1)
    _, scalars = train_step(state.replace(batch_stats=stats), shard(batch, 1))
    found = first_replica(scalars)
    assert np.isfinite([found["loss"], found["grad_norm"], found["param_norm"]]).all()
    with MetricWriter(tmp_path, start_step=0) as writer:
        meter = StepMeter(writer, setup)
        meter.add(1, scalars, images=8)
        with pytest.raises(NonFiniteError, match="step 1: batch_stats is not finite; "):
            meter.flush()


def test_at_most_ten_samples_are_named(tiny_config):
    setup = make_setup(tiny_config)
    source = setup.dataset.source("train")
    stems = [repr(source[i]["stem"]) for i in range(10)]
    few, many = (dataclasses.replace(setup, sampler=[np.arange(n)]) for n in (1, 13))
    assert describe_samples(few, 1) == f"sample {stems[0]}"
    assert describe_samples(many, 1) == f"samples {', '.join(stems)} and 3 more"


def test_first_step_advises_to_look_at_data_and_clipping_is_not_advised_twice(
    tiny_config, tmp_path
):
    setup = make_setup(tiny_config)
    assert setup.config.optimizer.hyperparameters["clip_norm"] == 5.0
    for step, cure in {
        1: "no step has changed the weights yet, so look at these samples, at "
        "config.loss and at config.model.pretrained. The",
        2: "lower config.schedule.learning_rate, which gives 0.003 here, or "
        "config.optimizer.clip_norm. The",
    }.items():
        with MetricWriter(tmp_path, start_step=0) as writer:
            meter = StepMeter(writer, setup)
            meter.add(step, replicate({"loss": np.float32("nan")}), images=1)
            with pytest.raises(
                NonFiniteError, match=f"step {step}: loss is nan; "
            ) as stopped:
                meter.flush()
        assert cure in str(stopped.value)
        assert json.loads((tmp_path / "metrics.jsonl").read_text() or "[]") == []
