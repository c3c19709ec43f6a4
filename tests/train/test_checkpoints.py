"""Checkpoints: what is kept, what is restored, and what is passed over as damaged."""

import contextlib
import random
import shutil

import numpy as np
import pytest

from segloss.train.step import TrainState
from segloss.trained.checkpoints import Checkpoints

PARAMS = {"conv1": {"kernel": np.full(3, 2.0)}, "conv2": {"kernel": np.full(2, 3.0)}}
VARIABLES = {"params": PARAMS, "batch_stats": {}}


def state_at(step):
    """A state whose arrays hold its step, and so much that files are not tiny."""
    rng = np.random.default_rng(step)
    return TrainState(
        step=np.int32(step),
        params=PARAMS | {"conv2": {"kernel": rng.normal(size=2)}},
        batch_stats={"norm": {"mean": rng.normal(size=40)}},
        opt_state=({"mu": rng.normal(size=40)}, (np.int32(step),)),
        key=np.arange(2, dtype=np.uint32),
    )


def save(directory, scores):
    """Saves a checkpoint for each step, with its score."""
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        for step, score in scores.items():
            meta = {"class_names": ["road", "car"], "at": step}
            checkpoints.save(state_at(step), mean_iou=score, meta=meta)


def steps_in(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def restored_from(directory, *, like=None, which="newest"):
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.restore(like or state_at(1), which=which)


def assert_is_state(restored, step):
    assert (restored.step, restored.meta["at"]) == (step, step)
    expected = state_at(step)
    assert restored.state.step == step
    assert restored.state.opt_state[1][0] == step
    for found, wanted in (
        (restored.state.batch_stats["norm"]["mean"], expected.batch_stats["norm"]),
        (restored.state.opt_state[0]["mu"], expected.opt_state[0]),
    ):
        np.testing.assert_array_equal(found, next(iter(wanted.values())))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of steps 1 and 2; step 1 is the best. To be copied."""
    directory = tmp_path_factory.mktemp("two")
    save(directory, {1: 0.7, 2: 0.5})
    return directory


@pytest.fixture
def directory(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


def test_only_the_named_fields_are_restored(tmp_path):
    state = state_at(1).replace(params=PARAMS, batch_stats={})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, mean_iou=None, meta={})
    shutil.rmtree(tmp_path / "1" / "optimizer")
    state = restored_from(tmp_path, like=VARIABLES).state
    assert state.keys() == {"params", "batch_stats"}
    np.testing.assert_array_equal(state["params"]["conv2"]["kernel"], [3, 3])


@pytest.mark.parametrize(
    ("params", "difference"),
    [
        pytest.param(
            {"conv1": PARAMS["conv1"]},
            r"conv2/kernel is float64 \(2,\), must be absent;",
            id="model_has_fewer",
        ),
        pytest.param(
            PARAMS | {"conv3": PARAMS["conv1"]},
            r"conv3/kernel is absent, must be float64 \(3,\);",
            id="model_has_more",
        ),
        pytest.param(
            PARAMS | {"conv2": PARAMS["conv1"]},
            r"conv2/kernel is float64 \(2,\), must be float64 \(3,\);",
            id="other_shape",
        ),
        pytest.param(
            PARAMS | {"conv2": {"kernel": np.zeros(2, np.float32)}},
            r"conv2/kernel is float64 \(2,\), must be float32 \(2,\);",
            id="other_type",
        ),
    ],
)
def test_parameters_of_another_model_are_refused(directory, params, difference):
    like = {"params": params, "batch_stats": state_at(1).batch_stats}
    message = f"checkpoints/2 does not fit this model: params/{difference} use the "
    with pytest.raises(ValueError, match=message):
        restored_from(directory, like=like)


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, {1: None, 2: 0.4, 3: 0.6, 4: float("nan"), 5: 0.6, 6: 0.5, 7: None})
    assert steps_in(tmp_path) == [5, 6, 7]
    assert restored_from(tmp_path, which="best").step == 5
    # In a process that knows the scores from the files alone.
    save(tmp_path, {8: 0.1, 9: None})
    assert steps_in(tmp_path) == [5, 8, 9]
    # A score that comes later replaces the first.
    save(tmp_path, {9: 0.9, 10: None, 11: None})
    assert steps_in(tmp_path) == [9, 10, 11]


def test_without_any_score_the_best_is_the_newest(tmp_path):
    save(tmp_path, {3: None, 5: None})
    assert_is_state(restored_from(tmp_path, which="best"), 5)


def damage(path, how, bit=None):
    contents = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(contents[: len(contents) // 2])
    else:
        bit = 8 * (len(contents) // 2) if bit is None else bit
        contents[bit // 8] ^= 1 << bit % 8
        path.write_bytes(contents)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("item", ["variables", "optimizer", "meta"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(directory, item, how):
    folder = directory / "2" / item
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files.remove(folder / "commit_success.txt")  # of orbax, which does not read it
    assert folder / "digests.json" in files
    for path in files:
        whole = path.read_bytes()
        damage(path, how)
        if path.name == "digests.json" and how != "missing":
            name = ".*"
        else:
            name = f"{path.relative_to(directory / '2')} "
            name += "is missing" if how == "missing" else "has changed"
        message = (
            rf"checkpoints/2 is damaged \({name}\); checkpoint 1 is used instead\."
        )
        with pytest.warns(UserWarning, match=message):
            assert_is_state(restored_from(directory), 1)
        path.write_bytes(whole)
    assert_is_state(restored_from(directory), 2)


@pytest.mark.parametrize("item", ["variables", "optimizer", "meta"])
def test_a_checkpoint_that_lacks_an_item_is_damaged(directory, item):
    shutil.rmtree(directory / "1" / item)
    with pytest.warns(UserWarning, match=r"/1 is damaged .* checkpoint 2 is used"):
        assert_is_state(restored_from(directory, which="best"), 2)


def test_no_single_bit_changes_a_state_silently(directory):
    rng = random.Random(0)
    files = [
        path
        for item in ("variables", "optimizer", "meta")
        for path in sorted((directory / "2" / item).rglob("*"))
        if path.is_file() and path.name != "commit_success.txt"
    ]
    for _ in range(120):
        path = rng.choice(files)
        whole = path.read_bytes()
        damage(path, "flipped", rng.randrange(8 * len(whole)))
        with pytest.warns(UserWarning, match=r"/2 is damaged .* checkpoint 1 is used"):
            assert restored_from(directory).step == 1
        path.write_bytes(whole)


def test_where_all_are_damaged_nothing_is_restored(directory):
    for step in ("1", "2"):
        damage(directory / step / "meta" / "metadata", "truncated")
    with pytest.raises(ValueError, match=r"/2 is damaged .*/1 is damaged .*none is le"):
        restored_from(directory)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_score_does_not_count(directory, how):
    path = directory / "1" / "score" / "metadata"
    damage(path, how, bit=8 * path.read_bytes().index(b"7") + 1)
    with pytest.warns(UserWarning, match="score/metadata is damaged .* not evaluated"):
        assert restored_from(directory, which="best").step == 2


def test_damaged_checkpoints_are_set_aside_and_written_again(directory):
    damage(directory / "2" / "meta" / "metadata", "missing")
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        checkpoints.set_aside_after(1)
        checkpoints.save(state_at(2), mean_iou=None, meta={"at": 2})
    assert_is_state(restored_from(directory), 2)
    (aside,) = directory.glob("2.damaged.*")
    assert (aside / "variables").is_dir()
    # It is no checkpoint, and is left alone.
    save(directory, {3: None, 4: None})
    assert steps_in(directory) == [1, 3, 4]
    assert aside.is_dir()


def test_checkpoint_of_an_earlier_version_is_restored(tmp_path):
    import orbax.checkpoint as ocp

    def score(metrics):
        return metrics["mean_iou"]

    options = ocp.CheckpointManagerOptions(best_fn=score)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step, mean_iou in {4: 0.25, 6: -1.0}.items():
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state_at(step)),
                    meta=ocp.args.JsonSave({"at": step}),
                ),
                metrics={"mean_iou": mean_iou},
            )
    assert_is_state(restored_from(tmp_path), 6)
    assert_is_state(restored_from(tmp_path, which="best"), 4)
    like = {"params": state_at(6).params, "batch_stats": state_at(6).batch_stats}
    state = restored_from(tmp_path, like=like).state
    np.testing.assert_array_equal(
        state["params"]["conv2"]["kernel"], state_at(6).params["conv2"]["kernel"]
    )
    damage(tmp_path / "6" / "meta" / "metadata", "truncated")
    with pytest.warns(UserWarning, match="/6 is damaged .* checkpoint 4 is used"):
        assert_is_state(restored_from(tmp_path), 4)
    # It is trained on, and its score still counts.
    save(tmp_path, {7: 0.2, 8: None, 9: None})
    assert steps_in(tmp_path) == [4, 8, 9]
    save(tmp_path, {9: 0.1})
    assert_is_state(restored_from(tmp_path, which="best"), 4)
    save(tmp_path, {4: 0.05})
    assert_is_state(restored_from(tmp_path, which="best"), 9)
