"""Processes share the images of an evaluation; no count depends on how many they are.

Each run has four devices: those of one process, of two or of four.
"""

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from processes import run_together

from segloss.data import open_dataset

pytestmark = pytest.mark.shared_out(by="module")

# In `val` are images of four sizes, and the larger two are predicted in tiles of 64. In
# `test` are fewer images than processes.
SIZES = {
    "train": [(40, 40)],
    "val": [(40, 40), (100, 140), *[(40, 40), (40, 72)] * 5, (200, 72), (40, 40)],
    "test": [(40, 40)],
}
FOUR = pytest.param(4, marks=pytest.mark.slow)

EVALUATED = """
import functools, json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from configs import folder
from segloss import hosts
from segloss.config import Inference, open_configured_dataset, parse_config
from segloss.console import make_console
from segloss.devices import map_over_devices, replicate
from segloss.models import UNet
from segloss.trained.evaluation import evaluate, evaluation_step
from segloss.trained.model import TrainedModel
from segloss.trained.results import final_evaluation

config = folder.get_config("smoke").unlock()
config.data.root, config.data.data_dir, out = *sys.argv[1:3], Path(sys.argv[3])
config.evaluate.batch_size = 6
config.evaluate.max_pixels = 64**2
config.evaluate.size_multiple = 8
parsed = parse_config(config)
inference = parsed.evaluate.inference
dataset = open_configured_dataset(parsed)
model = UNet(num_classes=3, depth=1, width=4, norm="none")
init = jax.jit(functools.partial(model.init, train=False))
# This key gives weights that predict all classes.
variables = init(jax.random.key(4), jnp.zeros((1, 16, 16, 3)))
trained = TrainedModel(
    model=model, variables=variables, class_names=dataset.class_names,
    ignore_label=255, inference=inference, step=0, images_seen=0, seconds=0.0,
    commit=None, pretrained=None,
)
mapped = map_over_devices(
    evaluation_step, model=model, inference=inference, num_classes=3,
    devices=jax.local_devices(),
)
shapes = set()

def step(variables, batch):
    shapes.add(batch["images"].shape)
    return mapped(variables, batch)

console = make_console()
console.quiet = not hosts.is_first()
results = {
    split: final_evaluation(
        parsed, dataset, split, trained, out / split, console, mapped_step=step
    )
    for split in ("val", "test")
}
shown, ids = [], []

def look(on_batch):
    return evaluate(
        step, replicate(variables), dataset, "val", batch_size=6, size_multiple=8,
        max_pixels=64**2, on_batch=on_batch,
        on_confusions=lambda of, counts: ids.extend(of.tolist()),
    )

def interrupt(images):
    if hosts.process_index() == hosts.process_count() - 1:
        raise hosts.Interrupted(15)

evaluation = look(shown.append)
told = {
    "results": results,
    "scores": evaluation.image_scores.tolist(),
    "ids": sorted(ids),
    "shown": sum(shown),
    "shapes": len(shapes),
    "reason": None,
}
try:
    look(interrupt)
except hosts.Interrupted as error:
    told["reason"] = error.reason
print(json.dumps(told))
"""

OF_A_RUN = """
import sys
from pathlib import Path
from segloss import hosts
from segloss.config import read_config
from segloss.trained import evaluate_run
run = Path(sys.argv[1])
results = evaluate_run(read_config(run), run)
assert hosts.exchange(results) == [results, results]
"""

MANY_CLASSES = """
import sys, tempfile, tracemalloc
import numpy as np
from segloss import hosts
from segloss.trained.confusions import ConfusionStore

me = hosts.process_index()
with tempfile.TemporaryFile() as file:
    store = ConfusionStore(file, 600, 150)
    for i in range(me, 600, 2):
        confusion = np.zeros((1, 150, 150), np.int32)
        if i % 50:  # else the image has no labelled pixel
            confusion[0, :, i % 150 : i % 150 + 20] = i
        store.add([i], confusion)
    tracemalloc.start()
    store.gather()
    print(tracemalloc.get_traced_memory()[1])
    if hosts.is_first():
        store.save(sys.argv[1])
"""

UNEQUAL = """
import os
import jax
from segloss import hosts
devices = 1 + hosts.process_index()
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
from segloss.trained.shares import share_out
try:
    share_out([], batch_size=4)
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Root and data_dir of a dataset that was prepared before."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data")
    for split, sizes in SIZES.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i, hw in enumerate(sizes):
            labels = rng.integers(0, 3, hw, np.uint8)
            labels[: i + 1] = 255
            image = rng.integers(0, 256, (*hw, 3), np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{i:02}.png")
            Image.fromarray(labels).save(root / split / "labels" / f"{i:02}.png")
    (root / "classes.txt").write_text("0 a\n1 b\n2 c\n")
    data_dir = tmp_path_factory.mktemp("datasets")
    open_dataset("folder", root=root, data_dir=data_dir)
    return root, data_dir


@pytest.fixture(scope="module")
def evaluated(prepared, tmp_path_factory):
    """Output, last line and files of `EVALUATED` by the number of processes."""

    @functools.cache
    def evaluated(num_processes):
        out = tmp_path_factory.mktemp("out")
        outputs = run_together(
            EVALUATED,
            num_processes,
            *prepared,
            out,
            devices=4 // num_processes,
            timeout=400,
        )
        return outputs, [json.loads(x.splitlines()[-1]) for x in outputs], out

    return evaluated


def per_image(out, split):
    with np.load(out / split / "confusions.npz") as arrays:
        return arrays["per_image"]


@pytest.mark.parametrize("num_processes", [2, FOUR])
def test_counts_do_not_depend_on_the_number_of_processes(evaluated, num_processes):
    _, (expected,), alone = evaluated(1)
    _, told, out = evaluated(num_processes)
    for process in told:
        assert process["results"] == expected["results"]
        np.testing.assert_array_equal(process["scores"], expected["scores"])
    for split, sizes in SIZES.items():
        if split == "train":
            continue
        counts = per_image(out, split)
        np.testing.assert_array_equal(counts, per_image(alone, split))
        pixels = [(h - i - 1) * w for i, (h, w) in enumerate(sizes)]
        assert counts.sum(axis=(1, 2)).tolist() == pixels
        results = json.loads((out / split / "results.json").read_text())
        assert results == expected["results"][split]
        np.testing.assert_array_equal(counts.sum(axis=0), results["confusion"])


@pytest.mark.parametrize("num_processes", [1, 2, FOUR])
def test_each_process_counts_other_images_and_one_prints(evaluated, num_processes):
    outputs, told, out = evaluated(num_processes)
    ids = [process["ids"] for process in told]
    assert all(ids)
    assert sorted(i for of_one in ids for i in of_one) == list(range(14))
    # There are two sizes of whole images, and one of tiles.
    compiled = [process["shapes"] for process in told]
    assert compiled == {1: [3], 2: [2, 2], 4: [1, 1, 1, 1]}[num_processes]
    assert [process["shown"] for process in told] == [14] * num_processes
    assert outputs[0].count("pictures: ") == 2
    assert not any("pictures: " in output for output in outputs[1:])
    assert (out / "val" / "figures" / "examples.png").exists()


@pytest.mark.parametrize("num_processes", [1, 2, FOUR])
def test_an_interruption_of_one_process_ends_all_evaluations(evaluated, num_processes):
    _, told, _ = evaluated(num_processes)
    assert [process["reason"] for process in told] == [15] * num_processes


@pytest.mark.slow
def test_two_processes_evaluate_a_run_as_one_does(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    run_together(OF_A_RUN, 2, run, devices=4, timeout=400)
    expected = json.loads((run / "results.json").read_text())
    evaluations = list((run / "evaluations").glob("*/results.json"))
    assert [json.loads(x.read_text()) for x in evaluations] == [expected]


def test_counts_of_many_classes_reach_the_first_process_in_parts(tmp_path):
    outputs = run_together(MANY_CLASSES, 2, tmp_path / "confusions.npz", timeout=400)
    # A process sends more than 6 MB; all matrices would be 54 MB.
    assert max(map(int, outputs)) < 6 * 2**20
    with np.load(tmp_path / "confusions.npz") as arrays:
        counts = arrays["per_image"]
    assert counts.shape == (600, 150, 150)
    for i, confusion in enumerate(counts):
        expected = np.zeros((150, 150), np.int32)
        if i % 50:
            expected[:, i % 150 : i % 150 + 20] = i
        np.testing.assert_array_equal(confusion, expected)


def test_processes_with_different_numbers_of_devices_are_refused():
    outputs = run_together(UNEQUAL, 2)
    assert [x.splitlines()[-1] for x in outputs] == [
        "evaluate: 2 processes must have the same number of devices, but process "
        f"{i} has {1 + i} of 3."
        for i in range(2)
    ]
