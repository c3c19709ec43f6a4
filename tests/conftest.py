"""Eight CPU devices for every test; JAX's silent rank promotion is an error."""

import argparse
import contextlib
import io
import os
import resource
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.io
from PIL import Image, ImageFile

# Read when the backend starts: the devices, and the threads without which jaxlib 0.10
# can deadlock in collectives on CPU. Processes that tests start inherit them.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Compiling takes longer than running here. On jaxlib 0.12, level 0 computes
        # other colours for another size of batch.
        "--xla_backend_optimization_level=0"
        if jax.__version_info__ < (0, 11)
        else "--xla_llvm_disable_expensive_passes=true",
    ]
)
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests compile the same small programs again and again, in several processes.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def share(text):
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be K/N with 1 <= K <= N, got {text!r}")
    return int(part), int(parts)


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        type=share,
        default="1/1",
        metavar="K/N",
        help="of the tests marked `shared_out`, run the K-th of N parts",
    )


def pytest_collection_modifyitems(config, items):
    part, parts = config.getoption("--share")

    def is_taken(item):
        if not (mark := item.get_closest_marker("shared_out")):
            return True
        # The tests of a module that share costly fixtures stay together.
        whole = mark.kwargs.get("by") == "module"
        name = item.nodeid.split("::")[0] if whole else item.nodeid
        return zlib.crc32(name.encode()) % parts == part - 1

    left_out = [item for item in items if not is_taken(item)]
    items[:] = filter(is_taken, items)
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="module")
def programs_freed():
    """Frees compiled programs before Linux has no room for more.

    Each takes some ten memory maps, a process may have 65,530, and jaxlib crashes when
    one more is refused: in a process that has run some thousand tests.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def complete():
    """Makes class ids, and what a loss cannot do without, into what it takes."""

    def complete(name, labels, num_classes):
        labels, needed = jax.numpy.asarray(labels), {}
        if "sigmoid" in name or name == "lovasz_hinge":
            labels = jax.nn.one_hot(labels, num_classes)
        if name == "log_bilinear_loss":
            needed["penalty"] = jax.numpy.ones((num_classes, num_classes))
        if name == "boundary_loss":
            inside = jax.nn.one_hot(labels, num_classes)
            needed["distances"] = 3 - 5 * inside
        return labels, needed

    return complete


@pytest.fixture
def full_disk():
    """Context manager in which no file can grow past a given number of bytes."""

    @contextlib.contextmanager
    def full_disk(num_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full_disk


@pytest.fixture(scope="session")
def research_data():
    """Finds real data, which their licences allow to use but not to redistribute."""

    def find(name):
        path = Path(__file__).parents[2] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(
                f"{name} is licensed for research only, so the repository cannot hold "
                f"it; to run this, put it at ../shared/data/{name}"
            )
        return path

    return find


@pytest.fixture(scope="session")
def datasets_dir(tmp_path_factory):
    """Where the tests' datasets are prepared, once for all."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def decoded(monkeypatch):
    """The mode of every image file whose pixels were decoded: L of labels."""
    modes = []
    load = ImageFile.ImageFile.load

    def load_and_note(image):
        if image.tile:  # else it is decoded already
            modes.append(image.mode)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_and_note)
    return modes


@pytest.fixture
def tiny_config(datasets_dir):
    """The demo at smoke size: 4 steps on 40 embedded images of 32x32."""
    return make_tiny_config(datasets_dir)


def make_tiny_config(datasets_dir):
    from configs import demo

    config = demo.get_config("smoke").unlock()
    config.data.data_dir = str(datasets_dir)
    return config


@pytest.fixture(scope="session")
def finished_run(datasets_dir, tmp_path_factory):
    """Directory of a run of `tiny_config` in one go; to be read, not changed."""
    from segloss.train import train

    workdir = tmp_path_factory.mktemp("finished")
    train(make_tiny_config(datasets_dir), workdir)
    return workdir


@pytest.fixture(scope="session")
def finished_folder_run(tmp_path_factory):
    """The same of `configs/folder.py` at smoke size, on images of two sizes."""
    from configs import folder
    from segloss.train import train

    directory = tmp_path_factory.mktemp("finished_folder")
    write_folder(directory / "shapes", ["ground", "box", "bar"], ignore_label=255)
    config = folder.get_config("smoke").unlock()
    config.data.root = str(directory / "shapes")
    config.data.data_dir = str(directory / "datasets")
    train(config, directory / "run")
    return directory / "run"


@pytest.fixture
def small_folder(tmp_path):
    """Six images of two sizes and three classes in the `folder` format."""
    write_folder(tmp_path / "shapes", ["ground", "box", "bar"], ignore_label=255)
    return tmp_path / "shapes"


@pytest.fixture
def open_folder(small_folder, tmp_path):
    """Opens `small_folder` as it is now."""
    from segloss.data.datasets.dataset import open_dataset

    def open_now(**hyperparameters):
        hyperparameters = {"data_dir": tmp_path / "data"} | hyperparameters
        return open_dataset("folder", root=small_folder, **hyperparameters)

    return open_now


@pytest.fixture(scope="session")
def binary_folder(tmp_path_factory):
    """The same with two classes; the third is void, and so is the first row."""
    root = tmp_path_factory.mktemp("binary") / "boxes"
    write_folder(root, ["ground", "box"], ignore_label=2)
    return root


@pytest.fixture
def camvid_like_folder(tmp_path):
    """The same with the classes of CamVid, whose void label is 11."""
    names = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    write_folder(tmp_path / "street", names.split(), ignore_label=11)
    return tmp_path / "street"


@pytest.fixture
def small_voc(tmp_path):
    """Seven images as VOC 2012 and SBD unpack; two are in lists of both."""
    root = tmp_path / "pascal"
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    lists = {
        voc / "ImageSets/Segmentation/train.txt": ["2007_b", "2007_a"],
        voc / "ImageSets/Segmentation/val.txt": ["2007_v", "2007_w"],
        sbd / "train.txt": ["2008_x", "2007_v", "2008_y"],
        sbd / "val.txt": ["2007_a", "2008_z"],
    }
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for path, ids in lists.items():
        path.write_text("\n".join(ids))  # as many lists, without a final newline
    rng = np.random.default_rng(0)
    for i, stem in enumerate(sorted({i for ids in lists.values() for i in ids})):
        hw = (40, 48) if i % 2 else (36, 52)
        labels = np.zeros(hw, np.uint8)
        labels[4:20, 6:30] = 1 + i
        labels[24:34, 10 + i : 40] = 20 - i
        image = rng.integers(0, 256, (*hw, 3), np.uint8)
        Image.fromarray(image).save(voc / f"JPEGImages/{stem}.jpg")
        if any(stem in ids for path, ids in lists.items() if path.parent == sbd):
            contents = {"Segmentation": labels, "CategoriesPresent": [1 + i, 20 - i]}
            scipy.io.savemat(sbd / f"cls/{stem}.mat", {"GTcls": contents})
        if stem.startswith("2007"):
            contour = Image.fromarray(np.where(labels > 9, 255, labels))
            contour.putpalette(rng.bytes(768))
            contour.save(voc / f"SegmentationClass/{stem}.png")
    return root


@pytest.fixture
def small_pets(tmp_path):
    """TFDS's folder with small archives of Oxford-IIIT Pet where it keeps downloads.

    There are 20 images of two sizes to train on and 4 to test on, with the labels 1
    pet, 2 background and 3 not classified. As in the real archive, a PNG is named .jpg.
    """
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.download import resource as downloads

    from segloss.data.datasets.tfds_stand_ins import stand_ins

    stems = [f"Abyssinian_{k}" for k in range(100, 123)] + ["beagle_116"]
    trimap = np.full((40, 44), 2, np.uint8)
    trimap[5:30, 5:35] = 3
    trimap[8:27, 8:32] = 1
    rng = np.random.default_rng(0)
    images, annotations = {}, {}
    for k, stem in enumerate(stems):
        labels = trimap[: 36 + 4 * (k % 2)]
        noise = rng.integers(0, 40, (*labels.shape, 3), np.uint8)
        kind = "PNG" if stem == "beagle_116" else "JPEG"
        images[f"images/{stem}.jpg"] = encoded(labels[..., None] * 60 + noise, kind)
        annotations[f"annotations/trimaps/{stem}.png"] = encoded(labels, "PNG")
    for name, of_list in {"test": stems[:4], "trainval": stems[4:]}.items():
        lines = "".join(f"{stem} 1 1 1\n" for stem in of_list)
        annotations[f"annotations/{name}.txt"] = lines.encode()
    directory = tmp_path / "tfds/downloads/oxford_iiit_pet"
    directory.mkdir(parents=True)
    with stand_ins():
        known = tfds.builder_cls("oxford_iiit_pet").url_infos
    for url, url_info in known.items():
        files = images if url_info.filename == "images.tar.gz" else annotations
        path = directory / downloads.get_dl_fname(url, url_info.checksum)
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        downloads.write_info_file(
            url=url,
            path=epath.Path(path),
            dataset_name="oxford_iiit_pet",
            original_fname=url_info.filename,
            url_info=url_info,
        )
    return tmp_path / "tfds"


def encoded(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_folder(root, class_names, *, ignore_label):
    rng = np.random.default_rng(0)
    for split, stems in {"train": "abcd", "val": "ef"}.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i, stem in enumerate(stems):
            hw = (40, 48) if i % 2 else (36, 52)
            labels = np.zeros(hw, np.uint8)
            labels[4:20, 6:30] = 1
            labels[24:34, 10 + i : 40] = 2
            labels[0] = ignore_label
            noise = rng.integers(0, 40, (*hw, 3))
            image = (np.minimum(labels, 2)[..., None] * 80 + noise).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{stem}.png")
            Image.fromarray(labels).save(root / split / "labels" / f"{stem}.png")
    lines = [f"{index} {name}\n" for index, name in enumerate(class_names)]
    (root / "classes.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A real Chromium without a screen, which logs its console and its requests."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    flags = """headless=new no-sandbox disable-gpu no-first-run disable-sync
        disable-background-networking disable-component-update
        disable-dev-shm-usage"""
    profile = f"user-data-dir={tmp_path_factory.mktemp('profile')}"
    for flag in (*flags.split(), profile):
        options.add_argument(f"--{flag}")
    logged = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logged)
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()
