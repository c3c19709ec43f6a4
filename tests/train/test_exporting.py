import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from flax import linen as nn

from segloss.config import read_config
from segloss.serving import load_exported
from segloss.trained import export, load_trained
from segloss.trained.export import make_exported

pytestmark = pytest.mark.shared_out(by="module")

# Not even installed, as far as this process can tell.
ALONE = """
import sys

class OnlyJax:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("segloss", "flax", "optax", "orbax", "jaxtyping"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyJax())
import numpy as np
from serving import load_exported

predict = load_exported(sys.argv[1])
for path in sys.argv[2:]:
    np.save(path, predict(np.load(path)))
"""


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture
def run(finished_folder_run, tmp_path):
    """The config of a run, and a directory of its own that has its checkpoints."""
    (tmp_path / "checkpoints").symlink_to(finished_folder_run / "checkpoints")
    return read_config(finished_folder_run), tmp_path


@pytest.fixture(scope="module")
def exported(finished_folder_run, tmp_path_factory):
    """A model, and the directory where it is exported for images of any size."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "checkpoints").symlink_to(finished_folder_run / "checkpoints")
    config = read_config(finished_folder_run)
    config.evaluate.update(flip=True, scales=[0.75])
    return load_trained(config, workdir), export(config, workdir)


def test_exported_model_predicts_alone_and_alike(exported, tmp_path):
    trained, directory = exported
    # Another number of images, and another size, than those before.
    batches = {
        tmp_path / "one.npy": images(1, 36, 52),
        tmp_path / "three.npy": images(3, 50, 33),
    }
    for path, batch in batches.items():
        np.save(path, batch)
    command = [sys.executable, "-c", ALONE, directory, *batches]
    subprocess.run(command, cwd=directory, check=True)
    for path, batch in batches.items():
        expected = np.stack([trained.predict(image) for image in batch])
        assert len(np.unique(expected)) > 1
        labels = np.load(path)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


def test_what_was_exported_lies_beside_it(exported):
    _, directory = exported
    about = json.loads((directory / "model.json").read_text())
    assert about["image_hw"] is None
    assert about["class_names"] == ["ground", "box", "bar"]
    assert about["step"] == 4
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["inference"]["scales"] == [0.75]


def test_network_that_asks_for_the_size_needs_one(exported):
    class Square(nn.Module):
        def __call__(self, images, *, train):
            return images[..., :2] * math.sqrt(images.shape[1])

    trained = dataclasses.replace(exported[0], model=Square(), variables={})
    make_exported(trained, (32, 32))
    with pytest.raises(
        ValueError, match=r"Square cannot .* --size.*size_multiple=32\."
    ):
        make_exported(trained, None)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (images(8, 8), r"uint8 \[8, 8, 3\]"),
        (images(1, 8, 8)[..., :1], r"uint8 \[1, 8, 8, 1\]"),
        (images(0, 8, 8), r"uint8 \[0, 8, 8, 3\]"),
        (images(1, 8, 8) / 255, r"float64 \[1, 8, 8, 3\]"),
    ],
)
def test_images_that_an_exported_model_does_not_take_are_named(exported, wrong, got):
    _, directory = exported
    with pytest.raises(ValueError, match=rf"must be uint8 \[b, h, w, 3\], got {got}\."):
        load_exported(directory)(wrong)


def test_exported_model_of_one_size_takes_windows(run):
    config, workdir = run
    (workdir / "exported").mkdir()
    (workdir / "exported" / "notes.txt").write_text("mine")
    (workdir / "exported" / "model.bin").write_bytes(b"old")
    config.evaluate.window_hw = (32, 32)
    with pytest.raises(ValueError, match="add --size=HEIGHT,WIDTH"):
        export(config, workdir)
    assert (workdir / "exported" / "model.bin").read_bytes() == b"old"
    predict = load_exported(export(config, workdir, image_hw=(36, 52)))
    assert {path.name for path in (workdir / "exported").iterdir()} == {
        "model.bin",
        "model.json",
        "serving.py",
        "notes.txt",
    }
    trained = load_trained(config, workdir)
    batch = images(2, 36, 52)
    expected = np.stack([trained.predict(image) for image in batch])
    np.testing.assert_array_equal(predict(batch), expected)
    with pytest.raises(ValueError, match=r"uint8 \[b, 36, 52, 3\], got uint8 \[1, 32,"):
        predict(images(1, 32, 32))
