import importlib.util
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from segloss.models.pretrained import (
    from_torchvision_resnet,
    load_weights,
    read_weights,
)
from segloss.models.pretrained.__main__ import main
from segloss.models.pretrained.files import write_weights

ROOT = Path(__file__).parents[2]
ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.array([0.5, -2.0], np.float32),
}
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(
    not HAS_TORCH, reason="torch is not installed; it is the extra 'torch'"
)


class Malicious:
    """Pickled, a call of a function with an effect that can be seen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_npz(path):
    np.savez(path, **ARRAYS)


def write_safetensors(path):
    safetensors.numpy.save_file(ARRAYS, path)


def write_torch(path):
    import torch

    torch.save({k: torch.from_numpy(v) for k, v in ARRAYS.items()}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.npz", write_npz),
        ("w.safetensors", write_safetensors),
        pytest.param("w.pth", write_torch, marks=needs_torch),
        pytest.param("w.pt", write_torch, marks=needs_torch),
    ],
)
def test_arrays_are_read_back(tmp_path, name, write):
    write(tmp_path / name)
    read = read_weights(tmp_path / name)
    assert read.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(read[key], array)


def test_half_precision_becomes_float32(tmp_path):
    path = tmp_path / "w.safetensors"
    halves = np.array([1.5, -0.25], ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"params/a/bias": halves}, path)
    array = load_weights(path).arrays["params/a/bias"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, -0.25])


@needs_torch
def test_bfloat16_of_torch_becomes_float32(tmp_path):
    import torch

    path = tmp_path / "w.pth"
    torch.save({"a": torch.tensor([1.5, -0.25], dtype=torch.bfloat16)}, path)
    np.testing.assert_array_equal(read_weights(path)["a"], np.float32([1.5, -0.25]))


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_without_torch_a_line_says_what_to_do(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"pip install 'segloss\[torch\]', or convert"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("ending", [".npz", ".pth", ".pt", ".safetensors"])
def test_code_in_a_pickle_never_runs(tmp_path, ending, protocol):
    path, trace = tmp_path / f"w{ending}", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"a.weight": Malicious(trace)}, protocol))
    with pytest.raises(ValueError, match=f"w{ending}"):
        read_weights(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # so it would have run


@needs_torch
def test_code_in_a_file_of_torch_never_runs(tmp_path):
    import torch

    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"a.weight": Malicious(trace)}, path)
    with pytest.raises(
        ValueError, match="contains more than tensors, which is refused"
    ):
        read_weights(path)
    assert not trace.exists()


def test_code_in_an_array_never_runs(tmp_path):
    path, trace = tmp_path / "w.npz", tmp_path / "ran"
    np.savez(path, a=np.array([Malicious(trace)], object))
    with pytest.raises(
        ValueError, match=r"w\.npz is not a valid \.npz file .*Object arrays"
    ):
        read_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("ending", [".npz", ".pth", ".pt", ".safetensors"])
def test_empty_file_is_named(tmp_path, ending):
    (tmp_path / f"w{ending}").touch()
    with pytest.raises(ValueError, match=rf"w\{ending} is empty\.$"):
        read_weights(tmp_path / f"w{ending}")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.npz", write_npz),
        ("w.safetensors", write_safetensors),
        pytest.param("w.pth", write_torch, marks=needs_torch),
    ],
)
@pytest.mark.parametrize("fault", ["truncated", "overwritten", "text"])
def test_broken_file_is_named_in_a_line(tmp_path, name, write, fault):
    path = tmp_path / name
    write(path)
    content = path.read_bytes()
    broken = {
        "truncated": content[:-20],
        "overwritten": b"\xff" * 8 + content[8:],
        "text": b"<html>404: Not Found</html>",
    }
    path.write_bytes(broken[fault])
    with pytest.raises(
        ValueError, match=rf"{name} is not a valid \.\w+ file of"
    ) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_members_of_an_npz_are_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        file.writestr("readme.txt", "weights")
    with pytest.raises(ValueError, match=r"its member 'readme.txt' is not an array"):
        read_weights(tmp_path / "w.npz")


@needs_torch
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {}},
            "its entry 'model' is a dict, not a tensor; save only the state dict",
        ),
        ({3: 1}, "its key 3 is not a string; save a state dict"),
        ([1, 2], "it contains a list; save a state dict"),
    ],
)
def test_file_of_torch_holds_a_state_dict(tmp_path, content, message):
    import torch

    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w.ckpt", r"one of \.safetensors, \.npz, \.pth, \.pt, got \.ckpt"),
        ("weights", "the suffix must be one of .*, got none"),
        ("gone.npz", r"gone\.npz: no such file"),
    ],
)
def test_wrong_name_is_an_error(tmp_path, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_weights(tmp_path / name)


def test_unknown_layout_lists_the_known(tmp_path):
    write_npz(tmp_path / "w.npz")
    message = (
        r"w.npz: its names \(a.weight, b.bias\) match no known layout; known are "
        r"torchvision_deeplabv3, torchvision_resnet, torchvision_vgg16, deeplab_v2, ef"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "w.npz")


@pytest.fixture(scope="module")
def resnet():
    """A state dict in torchvision's layout: one block per stage, one channel."""
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (1, 3, 7, 7), "bn1": 1}
    for stage, n, channels in ((1, 1, 1), (2, 2, 4), (3, 4, 8), (4, 8, 16)):
        block = f"layer{stage}.0"
        shapes |= {
            f"{block}.conv1.weight": (n, channels, 1, 1),
            f"{block}.bn1": n,
            f"{block}.conv2.weight": (n, n, 3, 3),
            f"{block}.bn2": n,
            f"{block}.conv3.weight": (4 * n, n, 1, 1),
            f"{block}.bn3": 4 * n,
            f"{block}.downsample.0.weight": (4 * n, channels, 1, 1),
            f"{block}.downsample.1": 4 * n,
        }
    state_dict = {}
    for name, shape in shapes.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(shape, int):
                state_dict[f"{name}.{kind}"] = rng.normal(size=shape)
        if not isinstance(shape, int):
            state_dict[name] = rng.normal(size=shape)
    return {
        name: (abs(array) if name.endswith("running_var") else array).astype(np.float32)
        for name, array in state_dict.items()
    }


def test_conversion_keeps_every_value(tmp_path, resnet):
    np.savez(tmp_path / "in.npz", **resnet)
    command = [sys.executable, "-m", "segloss.models.pretrained", "in.npz"]
    done = subprocess.run(
        [*command, "out.safetensors"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Stem 147 + 2; blocks 1 * 1 + 9 + 4 + 4 weights and 2 * 10 of norms, and so on.
    parameters = 147 + 2
    for n, channels in ((1, 1), (2, 4), (4, 8), (8, 16)):
        parameters += n * channels + 9 * n * n + 4 * n * n + 4 * n * channels
        parameters += 2 * (n + n + 4 * n + 4 * n)
    assert done.stdout == (
        f"in.npz: torchvision_resnet, 85 arrays, {parameters / 1e6:.2f} M parameters, "
        "no class head; written to out.safetensors\n"
    )
    written = load_weights(tmp_path / "out.safetensors")
    assert written.layout == "torchvision_resnet"
    assert written.num_parameters == parameters
    variables = from_torchvision_resnet(resnet)
    for path, array in written.arrays.items():
        expected = variables
        for key in path.split("/"):
            expected = expected[key]
        np.testing.assert_array_equal(array, expected)
    # The kernel of one input channel at the corner, as torch has it.
    kernel = written.arrays["params/conv1/kernel"]
    assert kernel[6, 0, 2, 0] == resnet["conv1.weight"][0, 2, 6, 0]
    assert {p.name for p in tmp_path.iterdir()} == {"in.npz", "out.safetensors"}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("running_mean", [np.nan], r"bn1\.running_mean must be finite in float32"),
        ("running_mean", np.float16([np.inf]), "must be finite in float32"),
        ("running_mean", [1e300], "must be finite in float32"),
        ("running_mean", ["one"], "must have dtype bfloat16, .* float64, got str"),
        ("running_mean", [1j], "got complex128"),
        ("running_mean", [1], "got int64"),
        ("running_mean", np.array([0], "M8[s]"), "got datetime64"),
        ("running_var", [-0.5], r"bn1\.running_var must hold variances >= 0, got -0.5"),
    ],
)
@pytest.mark.parametrize("converted", [False, True], ids=["torchvision", "segloss"])
def test_values_that_no_weights_have_are_an_error(
    tmp_path, resnet, name, values, message, converted
):
    arrays = resnet | {f"bn1.{name}": np.asarray(values)}
    if converted:
        kind = name.removeprefix("running_")
        arrays = {f"batch_stats/norm1/{kind}": np.asarray(values)}
        message = message.replace(r"bn1\.running_", "norm1/")
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match=rf"w\.npz: .*{message}") as caught:
        load_weights(tmp_path / "w.npz")
    assert "\n" not in str(caught.value)


def test_conversion_never_overwrites(tmp_path, resnet):
    np.savez(tmp_path / "in.npz", **resnet)
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(SystemExit, match=r"error: .*out.safetensors already exists"):
        main([str(tmp_path / "in.npz"), str(target)])
    assert target.read_bytes() == b"mine"


def test_what_cannot_be_written_is_an_error_in_a_line(tmp_path):
    with pytest.raises(OSError, match=r"gone/w\.safetensors cannot be written: "):
        write_weights(tmp_path / "gone" / "w.safetensors", ARRAYS, "segloss")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("in.npz", "out.npz", "out.npz: the output file must end in .safetensors"),
        ("gone.npz", "out.safetensors", "gone.npz: no such file"),
        ("gone.npz", "gone/out.safetensors", "error: .*gone: no such directory"),
    ],
)
def test_conversion_names_the_fault(tmp_path, source, target, message):
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / source), str(tmp_path / target)])
    assert not list(tmp_path.iterdir())


def test_help_of_the_conversion_lists_the_layouts(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "torchvision_vgg16" in capsys.readouterr().out
