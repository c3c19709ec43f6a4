"""The model of a finished or interrupted run."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import UInt8
from ml_collections import ConfigDict

from segloss.config import Inference, RunConfig, make_configured_model, parse_config
from segloss.data import put_on_canvas, round_up
from segloss.trained.checkpoints import Checkpoints
from segloss.trained.inference import predict_labels


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The weights of a checkpoint, their classes, and where they come from."""

    model: nn.Module
    variables: Any
    class_names: tuple[str, ...]
    ignore_label: int
    inference: Inference
    step: int
    images_seen: int | None
    seconds: float
    commit: str | None
    # The file of weights that the run began with, and its SHA-256.
    pretrained: dict[str, str] | None

    @functools.cached_property
    def _predict(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        how = dict(model=self.model, inference=self.inference)
        predict = jax.jit(functools.partial(predict_labels, **how))
        return functools.partial(predict, jax.device_put(self.variables))

    def predict(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Class ids of one RGB image; compiled once per size of the padded image."""
        h, w, _ = image.shape
        canvas = put_on_canvas(image, round_up((h, w), self.inference.size_multiple))
        return np.asarray(self._predict(canvas[None], np.array([[h, w]])))[0, :h, :w]


def load_trained(config: ConfigDict, workdir: str | Path) -> TrainedModel:
    """Reads the checkpoint that `config.evaluate.checkpoint` names, newest or best.

    Raises:
        FileNotFoundError: if the run has none.
        ValueError: if it does not fit the config.
    """
    return load_checkpoint(parse_config(config), Path(workdir))


def load_checkpoint(config: RunConfig, workdir: Path) -> TrainedModel:
    """`load_trained` for a config that is parsed."""
    which = config.evaluate.checkpoint
    directory = workdir / "checkpoints"
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        meta = checkpoints.read_meta(which)
        model = make_configured_model(config, len(meta["class_names"]))
        init = functools.partial(model.init, train=False)
        images = jnp.zeros((1, *config.data.crop_hw, 3))
        shapes = jax.eval_shape(init, jax.random.key(0), images)
        # Not the optimizer's state, which no prediction needs.
        like = {"batch_stats": {}} | {k: shapes[k] for k in shapes}
        restored = checkpoints.restore(like, which=which)
    return TrainedModel(
        model=model,
        variables=restored.state,
        class_names=tuple(meta["class_names"]),
        ignore_label=meta["ignore_label"],
        inference=config.evaluate.inference,
        step=restored.step,
        images_seen=meta.get("images_seen"),
        seconds=meta["seconds"],
        commit=meta["commit"],
        pretrained=meta.get("pretrained"),
    )
