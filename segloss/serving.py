"""Prediction with an exported model; needs jax, numpy, flatbuffers, not segloss."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export


def load_exported(directory: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """Loads an exported model from `model.bin` and `model.json` in `directory`.

    The returned function maps images `[b, h, w, n]`, with the number of bands and the
    type that "bands" in `model.json` names, to class ids `[b, h, w]`. It is compiled
    once per shape of the images, and raises ValueError for arrays of another type, or
    of a shape that the model does not take.

    Raises:
        ValueError: if one of the files is damaged; names it.
    """
    directory, remedy = Path(directory), "export the model again"
    try:
        about = json.loads((directory / "model.json").read_bytes())
        about["image_hw"], about["bands"]
    except (ValueError, LookupError, TypeError) as error:
        path = directory / "model.json"
        raise ValueError(f"{path} is damaged ({error!r}); {remedy}.") from error
    content = (directory / "model.bin").read_bytes()
    # Models that were exported before there was a digest have none.
    if about.get("sha256") not in (None, hashlib.sha256(content).hexdigest()):
        path = directory / "model.bin"
        raise ValueError(f"{path} is damaged, or not of this model.json; {remedy}.")
    hw, bands = about["image_hw"], about["bands"]
    n, dtype = bands["num_bands"], bands["dtype"]
    model = export.deserialize(content)
    call = jax.jit(model.call)

    def predict(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        b, *image_hw, channels = images.shape if images.ndim == 4 else (0,) * 4
        fits = b > 0 and channels == n and hw in (None, image_hw)
        if not fits or images.dtype != dtype:
            h, w = hw or "hw"
            got = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images must be {dtype} [b, {h}, {w}, {n}], got {got}.")
        return np.asarray(call(images))

    return predict
