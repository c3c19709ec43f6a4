"""Memory to evaluate and predict one large image with the default config for folders.

python -m benchmarks.large_images
python -m benchmarks.large_images --side=3000 --ways=predict

The network of `configs/folder.py` has random weights, and the image is a JPEG of random
blocks of two classes. Each way runs in a new process. "Beyond the start" is the peak of
its resident memory minus the resident memory after the imports, once the dataset is
open and JAX has started. The ways:

- training: the evaluation while training, of a state that is on the devices;
- evaluate: `--mode=evaluate`, which also loads the checkpoint and draws a figure;
- predict: `--mode=predict` of the image and its label.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console
from rich.table import Table

from configs import folder
from segloss.config import write_config
from segloss.report import markdown_table

WAYS = ("training", "evaluate", "predict")
SIDE = flags.DEFINE_integer("side", 6000, "Height and width of the image in pixels.")
CHOSEN = flags.DEFINE_list("ways", list(WAYS), f"Some of {', '.join(WAYS)}.")
WORKDIR = flags.DEFINE_string("workdir", None, "Of the parent process; internal.")
WAY = flags.DEFINE_string("way", None, "What this process measures; internal.")
_BLOCK = 50  # pixels
_MIB = 2**20


def main(_: list[str]) -> None:
    """Prints a table of memory and time, one row per way (see the module)."""
    if WAY.value:
        _measure(WAY.value, Path(WORKDIR.value))
        return
    table = Table("way")
    for name in ("start, MiB", "beyond the start, MiB", "seconds"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as directory:
        _write_images(Path(directory) / "images", SIDE.value)
        _run("prepare", directory)
        for way in CHOSEN.value:
            start, peak, seconds = map(float, _run(way, directory).split()[-3:])
            table.add_row(way, f"{start:.0f}", f"{peak - start:.0f}", f"{seconds:.0f}")
    print(f"{SIDE.value}x{SIDE.value} pixels, configs/folder.py:\n")
    print(markdown_table(table))


def _run(way: str, directory: str) -> str:
    """Runs `_measure` in a new process and returns what it printed."""
    command = [sys.executable, "-m", "benchmarks.large_images"]
    command += [f"--way={way}", f"--workdir={directory}", "--verbosity=-1"]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def _config(directory: Path) -> ConfigDict:
    config = folder.get_config().unlock()
    config.data.root = str(directory / "images")
    config.data.data_dir = str(directory / "datasets")
    return config


def _write_images(root: Path, side: int) -> None:
    """Writes a dataset in the `folder` format to `root`.

    It has 16 small images in train, and one of `side` x `side` pixels in val.
    """
    rng = np.random.default_rng(0)
    sizes = {"train": 16 * [_BLOCK], "val": [side]}
    for split, sides in sizes.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i, n in enumerate(sides):
            blocks = rng.integers(0, 2, 2 * (-(-n // _BLOCK),), np.uint8)
            labels = np.kron(blocks, np.ones((_BLOCK, _BLOCK), np.uint8))[:n, :n]
            image = Image.fromarray(labels * np.uint8(160)).convert("RGB")
            image.save(root / split / "images" / f"{i}.jpg")
            Image.fromarray(labels).save(root / split / "labels" / f"{i}.png")
    (root / "classes.txt").write_text("0 ground\n1 block\n")


def _measure(way: str, directory: Path) -> None:
    """Runs `way` and prints resident MiB at its start, at the peak, and its seconds.

    "prepare" instead saves a checkpoint with random weights, and prints nothing.
    """
    import jax

    from segloss.config import open_configured_dataset, parse_config
    from segloss.console import make_progress
    from segloss.devices import replicate
    from segloss.train.loop import Watch, make_setup
    from segloss.train.step import make_state
    from segloss.trained import evaluate_run, predict

    config, workdir = _config(directory), directory / "run"
    if way == "prepare":
        _save_random_weights(config, workdir)
        return
    console = Console(file=sys.stderr)
    if way == "training":
        setup = make_setup(config)
        crop_hw = setup.config.data.crop_hw
        state = replicate(
            make_state(setup.model, setup.optimizer, seed=0, image_hw=crop_hw)
        )
        watch = Watch(setup, console, lambda: None)
    else:
        open_configured_dataset(parse_config(config))
        jax.devices()
    start, began = _resident_mib(), time.monotonic()
    if way == "training":
        with make_progress(console) as progress:
            watch.scores(state, progress)
    elif way == "evaluate":
        evaluate_run(config, workdir)
    else:
        predict(config, workdir, directory / "images" / "val")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(start, peak, time.monotonic() - began)


def _save_random_weights(config: ConfigDict, workdir: Path) -> None:
    import contextlib

    import jax

    from segloss.train.loop import Checkpoints, make_setup
    from segloss.train.step import make_state

    setup = make_setup(config)
    crop_hw = setup.config.data.crop_hw
    state = make_state(setup.model, setup.optimizer, seed=0, image_hw=crop_hw)
    meta = {
        "commit": None,
        "seconds": 0.0,
        "class_names": list(setup.dataset.class_names),
        "ignore_label": setup.dataset.ignore_label,
    }
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        checkpoints.save(jax.tree.map(np.asarray, state), mean_iou=None, meta=meta)
    write_config(config, workdir)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MIB


if __name__ == "__main__":
    app.run(main)
