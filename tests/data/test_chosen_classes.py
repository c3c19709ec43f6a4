"""Some classes of a dataset, merged or not, wherever labels are seen."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import folder
from segloss.config import (
    change_fields,
    check_same_config,
    open_configured_dataset,
    parse_config,
    read_config,
    write_config,
)
from segloss.data import (
    BadSampleError,
    Choice,
    Loading,
    Windows,
    load_batch,
    open_dataset,
)
from segloss.train import make_setup, train
from segloss.trained import predict
from segloss.trained.inputs import InputImage
from segloss.trained.reading import Reader
from segloss.trained.same_dataset import describe_changed_dataset, summarise_dataset

NAMES = ("road", "car", "bus", "tree")
CHOSEN = ("tree", ("vehicle", ("bus", "car")))
CHANGES = {"resume_with_changes": True}


@pytest.fixture
def root(tmp_path):
    """Labels of 2x4: of all four classes and void, and of road alone."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "root" / split / kind).mkdir(parents=True)
        for stem, row in {"all": [0, 1, 2, 255], "road": [0, 0, 0, 0]}.items():
            labels = np.uint8([row, [3, 3, row[1], row[2]] if any(row) else row])
            folder = tmp_path / "root" / split
            Image.fromarray(labels).save(folder / "labels" / f"{stem}.png")
            Image.fromarray(labels).convert("RGB").save(folder / f"images/{stem}.png")
    text = "".join(f"{k} {name}\n" for k, name in enumerate(NAMES))
    (tmp_path / "root" / "classes.txt").write_text(text)
    return tmp_path / "root"


@pytest.fixture
def whole(root, tmp_path):
    return open_dataset("folder", root=root, data_dir=tmp_path / "data")


@pytest.fixture
def tiny_folder_config(small_folder, tmp_path):
    config = folder.get_config("smoke").unlock()
    config.total_steps = 2
    config.data.update(root=str(small_folder), data_dir=str(tmp_path / "data"))
    return config


def test_labels_become_those_of_the_chosen_classes(whole):
    chosen = whole.choose(CHOSEN)
    assert chosen.class_names == ("tree", "vehicle")
    assert (chosen.ignore_label, chosen.num_pixels) == (255, whole.num_pixels)
    source = pickle.loads(pickle.dumps(chosen.source("train")))
    first, second = source[0], source.opened(1)
    assert first["labels"].tolist() == [[255, 1, 1, 255], [0, 0, 1, 1]]
    assert first["labels"].dtype == np.uint8
    assert first["image"].shape == second["image"].shape == (2, 4, 3)
    assert second["labels"].tolist() == [[255] * 4] * 2
    assert (len(source), source.split, source.label_hw(1)) == (2, "train", (2, 4))
    assert chosen.source("train", images=False)[0].keys() == {"labels", "stem"}


def test_indices_of_choices_are_kept_apart(whole):
    of_all = whole.class_index("train").pixel_counts
    chosen, other = whole.choose(CHOSEN), whole.choose(("tree", "car"))
    assert chosen.class_index("train").pixel_counts.tolist() == [[2, 4], [0, 0]]
    assert other.class_index("train").pixel_counts.tolist() == [[2, 2], [0, 0]]
    assert whole.class_index("train").pixel_counts.tolist() == of_all.tolist()
    prints = {x.fingerprint for x in (whole, chosen, other, whole.choose(CHOSEN))}
    assert len(prints) == 3
    paths = {x.class_index_path("train") for x in (whole, chosen, other)}
    assert len(paths) == 3
    assert all(path.exists() for path in paths)
    # All classes in their order are no choice.
    assert whole.choose(NAMES) is whole
    assert whole.choose(NAMES[::-1]).fingerprint not in prints
    renamed = whole.choose((*NAMES[:3], ("plant", ("tree",))))
    assert renamed.class_names == ("road", "car", "bus", "plant")
    with pytest.raises(ValueError, match="classes of folder were chosen before"):
        renamed.choose(("plant",))


def test_what_is_void_or_merged_is_said(whole):
    chosen = whole.choose(CHOSEN)
    assert chosen.notes == (
        *whole.notes,
        "data.classes: 1 of 4 classes are void: road",
        "data.classes: vehicle is car, bus",
    )
    assert chosen.describe_classes("train") == [
        "62.5% of the pixels of train are void: they do not count",
        "1 of 2 images of train have no pixel that counts",
    ]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("road", "cra"), "folder has no class 'cra'; known are road, car, bus, tree"),
        ((("a", ("cra",)),), "folder has no class 'cra'; known are road, car, bus"),
        ((), r"must be a tuple of names of classes, such as \('road'.*, got \(\)"),
        ("road", "must be a tuple of names of classes, .*, got 'road'"),
        (("road", 3), "must be a tuple of names of classes, .*, got 3 in it"),
        (("road", ("car", "bus")), r".* got \('car', 'bus'\) in it"),
        (("road", ("car", ())), r".* got \('car', \(\)\) in it"),
        (("road", "road"), "must name each class once, but 'road' is there 2 times"),
        (
            ("car", ("a", ("bus", "car"))),
            "must name each class once, but 'car' is there 2",
        ),
        (
            ("car", ("car", ("bus",))),
            "must name each class once, but 'car' is there 2 times",
        ),
    ],
)
def test_wrong_choice_is_refused_in_a_line(whole, classes, message):
    with pytest.raises(ValueError, match=rf"^config\.data\.classes:? {message}") as got:
        whole.choose(classes)
    assert "\n" not in str(got.value)


def test_label_that_is_no_class_is_a_bad_sample(whole):
    class Spoilt(type(whole.source("train"))):
        def opened(self, i):
            return super().opened(i) | {"labels": np.full((2, 4), 7, np.uint8)}

    source = whole.choose(CHOSEN).source("train")
    source._source.__class__ = Spoilt
    message = re.escape("labels of sample 'all' of split 'train' cannot be used (")
    with pytest.raises(BadSampleError, match=message + ".* got 7 "):
        source[0]


def test_windows_and_batches_see_the_choice(whole):
    chosen = whole.choose(CHOSEN)
    windows = Windows(crop_hw=(2, 2), scales=(1.0,), keep_classes=True)
    assert chosen.class_index_path("train", windows).parent == chosen.data_dir
    assert chosen.class_index("train", windows).pixel_counts.shape == (2, 2)
    loading = Loading(canvas_hw=(2, 4), ignore_label=255, num_classes=2)
    batch = load_batch(chosen.source("train"), np.arange(2), loading, batch_size=2)
    assert batch["valid"].sum(axis=(1, 2)).tolist() == [6, 0]
    assert batch["labels"][0].tolist() == [[255, 1, 1, 255], [0, 0, 1, 1]]


def test_setup_reader_and_checkpoint_know_the_choice(tiny_folder_config, tmp_path):
    config = tiny_folder_config
    config.data.classes = ("ground", ("thing", ("bar", "box")))
    config.sampler.name = "class_uniform"
    config.loss.class_weights = dict(name="median_frequency")
    setup = make_setup(config)
    assert (setup.model.num_classes, setup.loading.num_classes) == (2, 2)
    dataset = setup.dataset
    # What a checkpoint stores, and a prediction knows of it.
    meta = json.loads(json.dumps(summarise_dataset(dataset)))
    meta = {"dataset": meta, "ignore_label": 255}
    reader = Reader(
        parse_config(config),
        class_names=dataset.class_names,
        ignore_label=255,
        choice=Choice.from_json(meta["dataset"]["choice"]),
    )
    folder = Path(config.data.root) / "val"
    image = InputImage(folder / "images/e.png", "e", folder / "labels/e.png")
    _, labels, misfit = reader.read(image)
    assert misfit == ""
    np.testing.assert_array_equal(labels, dataset.source("val")[0]["labels"])
    # A run that resumes.
    write_config(config, tmp_path)
    config.data.classes = ("ground", ("thing", ("box",)))
    other = open_configured_dataset(parse_config(config))
    with pytest.raises(ValueError, match=r"data.classes was .*'bar', 'box'.* is .*"):
        check_same_config(config, tmp_path)
    assert describe_changed_dataset(meta, dataset) == "the contents of images or labels"
    assert describe_changed_dataset(meta, other) == (
        "config.data.classes chooses or merges other classes"
    )


@pytest.mark.slow
def test_run_of_a_choice_from_training_to_prediction(tiny_folder_config, tmp_path):
    config, run = tiny_folder_config, tmp_path / "run"
    config.data.classes = ("ground", ("thing", ("bar", "box")))
    results = train(config, run)
    read = read_config(run)
    assert read.data.classes == config.data.classes
    assert [row["name"] for row in results["per_class"]] == ["ground", "thing"]
    # Labels beside the images are those of all three classes.
    (done,) = predict(read, run, f"{config.data.root}/val")
    assert done.scores["summary"] == results["summary"]
    # Other classes, and other merged ones of the same names.
    for classes, message, flags in [
        (("ground", "box"), "data.classes was .* is \\['ground', 'box'\\]", {}),
        (("ground", "box"), "2: added box; removed thing", CHANGES),
        (("ground", ("thing", ("box",))), "data.classes chooses or merges", CHANGES),
        (("ground", "bx"), "folder has no class 'bx'; known are ground, box, bar", {}),
    ]:
        config.data.classes = classes
        with pytest.raises(ValueError, match=message):
            train(config, run, **flags)


def test_field_is_checked_and_set_like_others(tiny_config):
    config = change_fields(tiny_config, ["data.classes='sky',('pet',('cat','dog'))"])
    assert parse_config(config).data.classes == ("sky", ("pet", ("cat", "dog")))
    assert parse_config(tiny_config).data.classes is None
    config = change_fields(tiny_config, ["data.classes=sky"])
    with pytest.raises(ValueError, match=r"config\.data\.classes must be a tuple"):
        parse_config(config)
