"""Loads the model of a finished or interrupted run."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float32, Shaped, UInt
from ml_collections import ConfigDict

from segloss.config import Inference, RunConfig, make_configured_model, parse_config
from segloss.data import Choice, put_on_canvas
from segloss.data.bands import RGB, Bands, class_dtype
from segloss.errors import MissingFileError
from segloss.remote import opened
from segloss.trained.checkpoints import Checkpoints
from segloss.trained.finite import check_finite
from segloss.trained.inference import predict_labels, predict_labels_and_probs
from segloss.trained.memory import memory_named
from segloss.trained.tiles import Tile, Tiling, plan_tiles


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of a checkpoint, its classes and its origin.

    Attributes:
        variables: `params` and `batch_stats` of the model.
        inference: how images are predicted.
        step: number of training steps.
        images_seen: number of images used in training; None if unknown.
        seconds: duration of training.
        commit: commit of the code that trained the model; None if unknown.
        bands: the bands of the images that the model was trained on.
        fingerprint: that of the dataset that it was trained on; None if unknown.
        choice: how its classes were chosen of those of the dataset; None has all.
    """

    model: nn.Module
    variables: Any
    class_names: tuple[str, ...]
    ignore_label: int
    inference: Inference
    step: int
    images_seen: int | None
    seconds: float
    commit: str | None
    # `file` and `sha256` of the weights that the run started from, and `step` if they
    # are those of another run.
    pretrained: dict[str, Any] | None
    bands: Bands = RGB
    fingerprint: str | None = None
    choice: Choice | None = None
    # Changes of the config with which training was resumed; see `segloss.train.start`.
    changes: tuple[dict[str, Any], ...] = ()

    @functools.cached_property
    def _predict(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return self._compile(predict_labels)

    @functools.cached_property
    def _predict_both(self) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]:
        return self._compile(predict_labels_and_probs)

    def _compile(self, predict: Callable) -> Callable:
        how = dict(model=self.model, inference=self.inference, bands=self.bands)
        predict = jax.jit(functools.partial(predict, **how))
        return functools.partial(predict, jax.device_put(self.variables))

    def predict(self, image: Shaped[np.ndarray, "..."]) -> UInt[np.ndarray, "h w"]:
        """Predicts the class ids of one image `[h, w, n]` of any size.

        An image with more than `inference.max_pixels` is predicted in overlapping
        tiles, one after the other: see `plan_tiles`. Compiles once per size of the
        tiles, or of the padded image if it is predicted whole. The class ids are uint8,
        or uint16 if there are more than 256 classes.

        Raises:
            ValueError: if the bands or the type of the image are not `bands`.
        """
        labels = np.empty(image.shape[:2], class_dtype(len(self.class_names)))
        for tile, predicted in self._predict_tiles(self._predict, image):
            labels[tile.kept] = np.asarray(predicted)[0][tile.kept_inside]
        return labels

    def predict_with_probs(
        self, image: Shaped[np.ndarray, "..."]
    ) -> tuple[UInt[np.ndarray, "h w"], Float32[np.ndarray, "h w c"]]:
        """Predicts the class ids of one image, and the probability of every class.

        Tiles and class ids are those of `predict`. The probabilities of a pixel are in
        [0, 1] and their sum is 1; all of them take 4 bytes per pixel and class.

        Raises:
            ValueError: if the bands or the type of the image are not `bands`.
        """
        labels = np.empty(image.shape[:2], class_dtype(len(self.class_names)))
        probs = np.empty((*image.shape[:2], len(self.class_names)), np.float32)
        for tile, predicted in self._predict_tiles(self._predict_both, image):
            for whole, part in zip((labels, probs), predicted, strict=True):
                whole[tile.kept] = np.asarray(part)[0][tile.kept_inside]
        return labels, probs

    def _predict_tiles(
        self, predict: Callable, image: Shaped[np.ndarray, "..."]
    ) -> Iterator[tuple[Tile, Any]]:
        """Yields each tile of the image with what `predict` returns for it."""
        self.bands.check_image(image)
        tiling = self.tiling(image.shape[:2])
        tile_h, tile_w = tiling.tile_hw
        for tile in tiling.tiles:
            top, left = tile.corner
            part = image[top : top + tile_h, left : left + tile_w]
            with self._memory_named(image, tiling):
                canvas = put_on_canvas(part, tiling.tile_hw, self.bands)
                predicted = predict(canvas[None], np.array([part.shape[:2]]))
                jax.block_until_ready(predicted)
            yield tile, predicted

    def _memory_named(
        self, image: Shaped[np.ndarray, "..."], tiling: Tiling
    ) -> contextlib.AbstractContextManager[None]:
        height, width = image.shape[:2]

        def parts() -> dict[str, int]:
            logits = math.prod(tiling.tile_hw) * len(self.class_names) * 4
            return {"the logits": logits, "the image on the host": image.nbytes}

        return memory_named(
            f"predicting an image of {height}x{width} pixels",
            parts,
            {
                "config.evaluate.max_pixels": self.inference.max_pixels,
                "config.evaluate.scales": self.inference.scales,
            },
        )

    def tiling(self, hw: tuple[int, int]) -> Tiling:
        """Plans how an image of height and width `hw` is predicted, maybe in tiles."""
        return plan_tiles(
            hw,
            size_multiple=self.inference.size_multiple,
            max_pixels=self.inference.max_pixels,
        )


def load_trained(config: ConfigDict, workdir: str | Path) -> TrainedModel:
    """Loads the model of the run in `workdir` from one of its checkpoints.

    `config.evaluate.checkpoint` chooses "newest" or "best" (the highest mean IoU).

    Raises:
        FileNotFoundError: if the run has no checkpoint.
        ValueError: if the checkpoint does not fit the config, or has weights that are
            NaN or infinite.
    """
    with opened(workdir) as local:
        return load_checkpoint(parse_config(config), local)


def load_checkpoint(config: RunConfig, workdir: Path) -> TrainedModel:
    """Does what `load_trained` does, with a parsed config."""
    directory = workdir / "checkpoints"
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        stored = checkpoints.read(config.evaluate.checkpoint)
    if stored is None:
        raise MissingFileError(f"{directory} has no checkpoint.")
    check_finite(stored)
    meta = stored.meta
    choice = meta.get("dataset", {}).get("choice")
    model = make_configured_model(config, len(meta["class_names"]))
    init = functools.partial(model.init, train=False)
    bands = Bands.from_json(meta.get("bands", RGB.to_json()))
    images = jnp.zeros((1, *config.data.crop_hw, bands.num_bands))
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    like = {"batch_stats": {}} | {k: shapes[k] for k in shapes}
    return TrainedModel(
        model=model,
        variables=stored.fit(like),
        class_names=tuple(meta["class_names"]),
        ignore_label=meta["ignore_label"],
        inference=config.evaluate.inference,
        step=stored.step,
        images_seen=meta.get("images_seen"),
        seconds=meta["seconds"],
        commit=meta["commit"],
        pretrained=meta.get("pretrained"),
        bands=bands,
        fingerprint=meta.get("fingerprint"),
        choice=Choice.from_json(choice) if choice else None,
        changes=tuple(meta.get("changes", ())),
    )
