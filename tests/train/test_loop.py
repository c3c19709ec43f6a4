import dataclasses
import json
import os
import shutil
import threading

import jax
import numpy as np
import pytest
from runs import curve, newest_state

from segloss import data
from segloss.config import write_config
from segloss.data import iterate_batches
from segloss.data.datasets import longtail_scenes
from segloss.data.loading import batches
from segloss.train import NonFiniteError, introduction, loop, make_setup, train

pytestmark = pytest.mark.shared_out


def test_bad_image_is_skipped_and_counted_where_asked_for(
    tiny_config, tmp_path, monkeypatch
):
    def draw_split(config, split):
        for sample in whole(config, split):
            cut = sample.image[: len(sample.image) // 2]
            bad = sample.stem == "train_00003"
            yield dataclasses.replace(sample, image=cut) if bad else sample

    whole = longtail_scenes.draw_split
    monkeypatch.setattr(longtail_scenes, "draw_split", draw_split)
    tiny_config.data.data_dir = str(tmp_path / "datasets")
    sampler = make_setup(tiny_config).sampler
    chosen = [int(3 in sampler[k]) for k in range(4)]
    assert 0 < sum(chosen) < 4
    with pytest.raises(ValueError, match="image of sample 'train_00003' of split"):
        train(tiny_config, tmp_path / "run")
    # The same run goes on, once its user wants the rest all the same.
    tiny_config.data.on_bad_sample = "skip"
    with pytest.warns(UserWarning, match=r"'train_00003' .* bad samples so far: 1"):
        train(tiny_config, tmp_path / "run")
    lines = [line for line in curve(tmp_path / "run") if "loss" in line]
    assert [line.get("skipped_samples", 0) for line in lines] == chosen
    used = sum(len(sampler[k]) for k in range(4)) - sum(chosen)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["images_seen"] == used


def test_what_a_run_leaves(finished_run):
    found = {p.name for p in finished_run.iterdir()}
    assert found == {
        "checkpoints",
        "config.json",
        "confusions.npz",
        "figures",
        "metrics.jsonl",
        "results.json",
        "tensorboard",
    }
    results = json.loads((finished_run / "results.json").read_text())
    assert results["num_images"] == 8
    per_image = np.load(finished_run / "confusions.npz")["per_image"]
    assert per_image.shape == (8, 21, 21)
    np.testing.assert_array_equal(per_image.sum(axis=0), results["confusion"])
    assert np.sum(results["confusion"]) > 0
    assert len(results["per_class"]) == 21
    lines = [
        json.loads(x) for x in (finished_run / "metrics.jsonl").read_text().splitlines()
    ]
    assert [x["step"] for x in lines if "val_mean_iou" in x] == [2, 4]
    final = [x for x in lines if "val_mean_iou" in x][-1]
    assert final["val_mean_iou"] == results["summary"]["mean_iou"]
    assert {"images_per_second", "data_wait_fraction"} <= lines[1].keys()
    names = [row["name"] for row in results["per_class"]]
    for kind in ("gradient_share", "pixel_share"):
        shared = [x for x in lines if f"{kind}/background" in x]
        assert [x["step"] for x in shared] == [2, 4]
        for line in shared:
            assert sum(line[f"{kind}/{name}"] for name in names) == pytest.approx(1)
    events = list((finished_run / "tensorboard").iterdir())
    assert sum(p.stat().st_size for p in events) > 100


def test_tensorboard_reads_back_the_curve(finished_run):
    from tensorboardX.proto import event_pb2

    read = {}
    for path in (finished_run / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            # A record is its length, a checksum, the event, a checksum.
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                read[value.tag, event.step] = value.simple_value
            data = data[16 + length :]
    assert sorted(step for tag, step in read if tag == "loss") == [1, 2, 3, 4]
    for line in curve(finished_run):
        for name in {"loss", "gradient_share/background"} & line.keys():
            assert read[name, line["step"]] == pytest.approx(line[name], rel=1e-6)


def test_newest_and_best_checkpoints_are_kept(tiny_config, tmp_path):
    tiny_config.total_steps = 6
    tiny_config.checkpoint_every_steps = 1
    tiny_config.evaluate_every_steps = 2
    train(tiny_config, tmp_path)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    scores = {x["step"]: x["val_mean_iou"] for x in lines if "val_mean_iou" in x}
    best = max(scores.values())
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert 6 in kept
    assert any(scores.get(step) == best for step in kept)
    assert len(kept) <= 3


def test_non_finite_loss_stops_the_run_and_checkpoints_stay_finite(
    tiny_config, tmp_path
):
    tiny_config.schedule = dict(name="constant", learning_rate=1e16)
    tiny_config.optimizer = dict(name="sgd")
    tiny_config.checkpoint_every_steps = 1
    with pytest.raises(
        NonFiniteError, match=r"step 2: batch_stats is not finite, and so are loss, gra"
    ) as stopped:
        train(tiny_config, tmp_path)
    setup = make_setup(tiny_config)
    stems = [setup.dataset.source("train")[int(i)]["stem"] for i in setup.sampler[1]]
    assert f"batch holds samples {', '.join(map(repr, stems))}; " in str(stopped.value)
    assert (
        "; lower config.schedule.learning_rate, which gives 1e+16 here, or set "
        "config.optimizer.clip_norm, such as 5.0. The saved checkpoints are finite."
    ) in str(stopped.value)
    restored = newest_state(tiny_config, tmp_path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored.state))
    assert not (tmp_path / "results.json").exists()


def test_run_of_another_config_is_refused_and_left_alone(tiny_config, finished_run):
    before = (finished_run / "config.json").read_text()
    tiny_config.schedule.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"schedule.learning_rate was 0.003, is 0.5"):
        train(tiny_config, finished_run)
    assert (finished_run / "config.json").read_text() == before


def test_checkpoint_of_another_dataset_is_refused(tiny_config, finished_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    tiny_config.data.train = 41
    # As if the data under the same root had changed.
    write_config(tiny_config, other)
    before = (other / "config.json").read_text()
    with pytest.raises(ValueError, match="the dataset changed since checkpoint 4"):
        train(tiny_config, other)
    assert (other / "config.json").read_text() == before


def test_best_checkpoint_is_what_is_reported_where_asked_for(tiny_config, tmp_path):
    tiny_config.evaluate.checkpoint = "best"
    tiny_config.total_steps = 8
    tiny_config.evaluate_every_steps = 1
    tiny_config.checkpoint_every_steps = 8
    results = train(tiny_config, tmp_path)
    scores = {x["step"]: x["val_mean_iou"] for x in curve(tmp_path) if "loss" not in x}
    assert len(scores) == 8
    assert results["summary"]["mean_iou"] == max(scores.values())
    assert scores[results["step"]] == max(scores.values())


def test_boundary_loss_trains_on_distances_that_the_loader_made(
    tiny_config, tmp_path, monkeypatch
):
    threads = set()

    def signed_distances(*args, **kwargs):
        threads.add(threading.current_thread())
        return make_distances(*args, **kwargs)

    make_distances = batches.signed_distances
    monkeypatch.setattr(batches, "signed_distances", signed_distances)
    with tiny_config.ignore_type():
        tiny_config.loss = [
            dict(name="softmax_cross_entropy"),
            dict(name="boundary_loss", weight=0.01),
        ]
    train(tiny_config, tmp_path)
    losses = [x["loss"] for x in curve(tmp_path) if "loss" in x]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert threads
    assert threading.main_thread() not in threads


def test_run_of_another_loss_makes_no_distances(tiny_config, tmp_path, monkeypatch):
    class FirstBatch(Exception):  # noqa: N818, it is what was asked for
        pass

    def load(*args, **kwargs):
        raise FirstBatch(*next(iterate_batches(*args, **kwargs)))

    monkeypatch.setattr(loop, "iterate_batches", load)
    with pytest.raises(FirstBatch) as loaded:
        train(tiny_config, tmp_path)
    assert "labels" in loaded.value.args
    assert "distances" not in loaded.value.args


def test_rows_that_no_image_ever_fills_are_told_once_at_the_start(
    tiny_config, tmp_path, capsys
):
    assert tiny_config.sampler.batch_max == 9
    train(tiny_config, tmp_path)
    line = (
        "sampler.batch_max=9 on 8 devices: every step computes 16 rows, and 7 of them "
        "never hold an image; batch_max=8 or 16 has no such rows\n"
    )
    before, after = capsys.readouterr().out.split(line)
    assert "trains for 4 steps" in before
    assert "step 2: val mean IoU" in after


def test_environment_of_the_tests_has_eight_devices():
    assert "device_count=8" in os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(
    ("batch_max", "rows", "told"),
    [
        (1, 8, "7 of them never hold an image; batch_max=8 has no such rows"),
        (7, 8, "1 of them never holds an image; batch_max=8 has no such rows"),
        (8, 8, ""),
        (9, 16, "7 of them never hold an image; batch_max=8 or 16 has no such rows"),
        (16, 16, ""),
    ],
)
def test_rows_that_stay_empty_are_counted(batch_max, rows, told):
    assert data.count_rows(batch_max, 8) == rows
    line = introduction.describe_unused_rows(batch_max, 8)
    start = f"sampler.batch_max={batch_max} on 8 devices: every step computes {rows} "
    assert line == (told and f"{start}rows, and {told}")
    assert introduction.describe_unused_rows(batch_max, 1) == ""
