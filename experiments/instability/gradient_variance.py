r"""Measures how loss and gradient vary from batch to batch, at checkpoints of a study.

python -m experiments.instability.gradient_variance --workdir=runs/instability
python -m experiments.instability.gradient_variance       # the page from what is stored

For each loss and seed, the network that was trained with random batches of 4 is loaded
half-way and at the end. At its weights, which stay, the loss and its gradient are
computed on `BATCHES` training batches of each sampler, each of an epoch of its own,
augmented as in training. All samplers thus meet the same networks. Writes
`gradient_variance.csv` and `gradient_variance.md` next to this file.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from configs.sweeps import instability
from experiments.instability.page import Measured, save, write_page
from experiments.running.sweep import PlannedRun, expand
from segloss import cli
from segloss.config import read_config
from segloss.console import make_progress
from segloss.data import iterate_batches
from segloss.data.samplers import EpochSampler
from segloss.devices import first_replica, map_over_devices, replicate, shard
from segloss.train.first_state import make_fresh_state
from segloss.train.setup import Setup, make_setup
from segloss.train.step import TrainState, train_step
from segloss.trained.checkpoints import Checkpoints

FOLDER = pathlib.Path(__file__).parent
# Of 4 images: the network is the same for all samplers that are measured.
NETWORK = "random4"
BATCHES = 64


class OfEpochs:
    """A sampler of independent batches: batch k is the first of epoch k of another.

    The batches of one epoch share no image. If they are most of the images, their mean
    varies less than that of independent ones, as `signal_and_noise` assumes.
    """

    def __init__(self, sampler: EpochSampler):
        self.batch_max = sampler.batch_max
        self._sampler = sampler

    def __getitem__(self, k: int) -> np.ndarray:
        return self._sampler[k * self._sampler.batches_per_epoch]


class KeepGradient:
    """An optimizer that changes no weight; its state is the last gradient."""

    def init(self, params: Any) -> Any:
        """Returns a state of zeros."""
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Returns no change, and the gradient as the state."""
        del state, params
        return jax.tree.map(jnp.zeros_like, gradient), gradient


def make_step(setup: Setup) -> Callable:
    """Makes the train step of a run, with `KeepGradient` for its optimizer."""
    return map_over_devices(
        train_step,
        mapping=setup.config.mapping,
        model=setup.model,
        loss=setup.loss,
        optimizer=KeepGradient(),
        augment=setup.augment,
        num_classes=setup.dataset.num_classes,
        bands=setup.dataset.bands,
    )


def measure(
    step: Callable, setup: Setup, state: TrainState, num_batches: int = BATCHES
) -> dict[str, float]:
    """Returns the fields of `Measured` from `images` on, at the weights of `state`.

    `step` is that of `make_step`, for the loss of `setup`, whose batches are used.
    """
    # Batch k is augmented by the key of step k. Only the statistics of BatchNorm change
    # from step to step, and training uses those of the batch.
    state = state.replace(step=0, opt_state=KeepGradient().init(state.params))
    state = replicate(state)
    losses, images = [], []
    total, squares = np.zeros(()), 0.0
    for batch in _batches(setup, num_batches):
        state, scalars = jax.block_until_ready(step(state, shard(batch)))
        gradient, _ = jax.flatten_util.ravel_pytree(first_replica(state.opt_state))
        gradient = np.asarray(gradient, np.float64)
        total, squares = total + gradient, squares + gradient @ gradient
        losses.append(float(np.ravel(scalars["loss"])[0]))
        images.append(float(np.sum(batch["sample_valid"])))
    norm, variance = signal_and_noise(num_batches, total, squares)
    return {
        "images": float(np.mean(images)),
        "mean": float(np.mean(losses)),
        "std": float(np.std(losses, ddof=1)),
        "norm": norm,
        "variance": variance,
    }


def signal_and_noise(
    count: int, total: np.ndarray, squares: float
) -> tuple[float, float]:
    """Returns `norm` and `variance` of `Measured` from sums over `count` gradients.

    `total` is their sum, `squares` the sum of their squared norms. Of independent
    gradients, both estimates of the trace and of the squared norm are unbiased; if the
    latter is not positive, the gradient is all noise, and the result is 0 and infinity.
    """
    mean = total / count
    trace = (squares - count * (mean @ mean)) / (count - 1)
    square = mean @ mean - trace / count
    if square <= 0:
        return 0.0, float("inf")
    return float(np.sqrt(square)), float(trace / square)


def _batches(setup: Setup, num_batches: int) -> Iterator[dict[str, Any]]:
    return iterate_batches(
        setup.dataset.source("train"),
        OfEpochs(setup.sampler),
        setup.loading,
        start=0,
        stop=num_batches,
        num_devices=jax.device_count(),
    )


def measure_study(workdir: pathlib.Path) -> Iterator[Measured]:
    """Measures all samplers at all checkpoints of the networks of `NETWORK`."""
    runs = expand(instability.get_config(), instability.sweep())
    # Compiled once for each loss and number of rows.
    steps: dict[str, Callable] = {}
    networks: dict[pathlib.Path, dict[int, TrainState]] = {}
    with make_progress() as progress:
        for run in progress.track(runs, description="networks and samplers"):
            loss, batches = run.arm.split("-", 1)
            folder = workdir / f"{loss}-{NETWORK}" / f"seed={run.seed}"
            config = read_config(folder).copy_and_resolve_references()
            setup = make_setup(_with_sampler(config, run))
            step = steps.setdefault(loss, make_step(setup))
            if folder not in networks:
                networks[folder] = _states(folder, setup)
            for number, state in networks[folder].items():
                values = measure(step, setup, state)
                yield Measured(loss, run.seed, number, batches, **values)


def _with_sampler(config: ConfigDict, run: PlannedRun) -> ConfigDict:
    with config.unlocked():
        del config["sampler"]
        config.sampler = run.config.sampler
    return config


def _states(folder: pathlib.Path, setup: Setup) -> dict[int, TrainState]:
    """Reads the networks of a run by their step."""
    fresh = make_fresh_state(setup)
    names = (path.name for path in (folder / "checkpoints").iterdir())
    with contextlib.closing(
        Checkpoints(folder / "checkpoints", read_only=True)
    ) as checkpoints:
        return {
            number: fresh.replace(**checkpoints.read(number).fit(fresh.variables))
            for number in sorted(int(name) for name in names if name.isdecimal())
        }


def main(argv: list[str]) -> None:
    del argv
    if (workdir := flags.FLAGS.workdir) is not None:
        save(list(measure_study(pathlib.Path(workdir))), FOLDER)
    write_page(FOLDER)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of the study's runs.")
    cli.run(main)
