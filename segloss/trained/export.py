"""Exports a run's model to one file that needs neither segloss nor flax."""

import dataclasses
import functools
import hashlib
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segloss import serving
from segloss.config import is_size
from segloss.console import make_console
from segloss.data import round_up
from segloss.errors import SeglossError
from segloss.provenance import versions
from segloss.remote import opened, shown
from segloss.trained.inference import predict_labels
from segloss.trained.model import TrainedModel, load_trained
from segloss.writing import replacing_folder, write_json

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    config: ConfigDict, workdir: str | Path, *, image_hw: tuple[int, int] | None = None
) -> Path | str:
    """Exports a run's model, with its weights and preprocessing, by `jax.export`.

    Writes three files:

    - `exported/model.bin` maps any number of images `[b, h, w, n]`, with the bands and
      the type of the training images (for RGB, uint8 `[b, h, w, 3]`), to class ids,
      uint8 `[b, h, w]` (uint16 if there are more than 256 classes). Images are
      predicted whole, whatever `max_pixels` is.
    - `exported/model.json` describes the bands of the images, the classes and the
      origin of the model, and has the SHA-256 of `model.bin`.
    - `exported/serving.py` loads the model; it needs only jax, numpy and flatbuffers.

    The files of an earlier export are replaced together, once all three are written;
    other files in the folder stay.

    JAX guarantees that versions up to six months newer, or three weeks older, than the
    exporting one can read `model.bin`.

    Args:
        config: the run's config; `config.evaluate` controls how images are predicted.
        workdir: directory of the run, a path or a URL such as `gs://bucket/run`.
        image_hw: height and width of the images that the exported model takes; None
            allows any size.

    Returns:
        The directory of the three files; a URL if `workdir` is one.

    Raises:
        FileNotFoundError: if the run has no checkpoint.
        ValueError: if `image_hw` is not a pair of positive integers, or if it is None
            and the model cannot be exported for any size.
    """
    if image_hw is not None and not is_size(image_hw):
        raise SeglossError(
            f"--size must be height and width in pixels such as 512,1024, "
            f"got {image_hw!r}."
        )
    if image_hw is None and config.evaluate.window_hw is not None:
        raise SeglossError(
            "config.evaluate.window_hw: the number of windows depends on the size of "
            "the images; add --size=HEIGHT,WIDTH."
        )
    with opened(workdir) as local:
        return _export(load_trained(config, local), local, image_hw)


def _export(
    trained: TrainedModel, workdir: Path, image_hw: tuple[int, int] | None
) -> Path | str:
    exported = make_exported(trained, image_hw)
    about = {
        "image_hw": image_hw and list(image_hw),
        "class_names": list(trained.class_names),
        "ignore_label": trained.ignore_label,
        "inference": dataclasses.asdict(trained.inference),
        # The model itself normalises its input with these means and deviations.
        "bands": trained.bands.to_json(),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "step": trained.step,
        "commit": trained.commit,
        "versions": versions(),
    }
    directory = workdir / "exported"
    with replacing_folder(directory) as unfinished:
        content = exported.serialize()
        about["sha256"] = hashlib.sha256(content).hexdigest()
        (unfinished / "model.bin").write_bytes(content)
        shutil.copy(serving.__file__, unfinished)
        write_json(unfinished / "model.json", about)
    make_console().print(f"exported model: {shown(directory)}", soft_wrap=True)
    return shown(directory)


def make_exported(
    trained: TrainedModel, image_hw: tuple[int, int] | None
) -> jax.export.Exported:
    """Exports a model for images of height and width `image_hw`; None is any size.

    Raises:
        ValueError: if `image_hw` is None and the model cannot be exported for any size.
    """
    symbols = "b, h, w" if image_hw is None else f"b, {image_hw[0]}, {image_hw[1]}"
    shape = (*jax.export.symbolic_shape(symbols), trained.bands.num_bands)
    predict = jax.jit(functools.partial(_predict, trained=trained))
    try:
        return jax.export.export(predict, platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, trained.bands.dtype)
        )
    # Code that needs the value of a symbolic size raises many kinds of errors.
    except Exception as error:
        if image_hw is not None:
            raise
        raise SeglossError(
            f"{type(trained.model).__name__} cannot be exported for images of any "
            "size; add --size=HEIGHT,WIDTH or, for a backbone of EfficientNet-Lite, "
            f"--set=evaluate.size_multiple=32. ({str(error).splitlines()[0]})"
        ) from error


def _predict(images: jax.Array, *, trained: TrainedModel) -> jax.Array:
    """Predicts class ids of images `[b, h, w, n]`; sizes may be symbolic."""
    b, h, w, n = images.shape
    pad = jnp.array(trained.bands.pad)
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = jnp.where(jnp.isfinite(images), images, pad.reshape(1, 1, 1, n))
    canvas_hw = round_up((h, w), trained.inference.size_multiple)
    canvas = jnp.broadcast_to(pad, (b, *canvas_hw, n))
    labels = predict_labels(
        jax.device_put(trained.variables),
        canvas.at[:, :h, :w].set(images),
        jnp.broadcast_to(jnp.array([h, w]), (b, 2)),
        model=trained.model,
        inference=trained.inference,
        bands=trained.bands,
    )
    return labels[:, :h, :w]
