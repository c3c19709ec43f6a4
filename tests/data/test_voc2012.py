import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.io import loadmat, savemat

from segloss.data import open_dataset
from segloss.data.datasets.faults import DatasetError
from segloss.data.datasets.voc2012 import voc2012

SHARED = Path(__file__).parents[2].parent / "shared/data"

VOC = "VOCdevkit/VOC2012"
LIST = f"{VOC}/ImageSets/Segmentation"
SBD = "benchmark_RELEASE/dataset"


@pytest.fixture
def open_voc(small_voc, tmp_path):
    """Opens `small_voc` as it is now."""

    def open_now():
        data_dir = tmp_path / "datasets"
        return open_dataset("voc2012", root=small_voc, partial=True, data_dir=data_dir)

    return open_now


@pytest.fixture
def faults_of(small_voc, tmp_path):
    """What is wrong with `small_voc` as it is now; nothing may be written."""

    def find(**hyperparameters):
        options = {"partial": True, "data_dir": tmp_path / "datasets"} | hyperparameters
        with pytest.raises(DatasetError) as caught:
            open_dataset("voc2012", root=small_voc, **options)
        assert str(caught.value).startswith(f"voc2012: {small_voc} has")
        assert not (tmp_path / "datasets").exists()
        return [str(fault) for fault in caught.value.faults]

    return find


def stems(dataset, split):
    return [sample["stem"] for sample in read(dataset, split)]


def read(dataset, split):
    source = dataset.source(split)
    return [source[i] for i in range(len(source))]


# --- what is read ---------------------------------------------------------------


def test_splits_are_those_of_voc_and_sbd(open_voc):
    dataset = open_voc()
    # SBD's lists also name 2007_a, which VOC labels, and 2007_v, which is in val.
    sbd = ["2008_x", "2008_y", "2008_z"]
    assert stems(dataset, "train") == ["2007_a", "2007_b", *sbd]
    assert stems(dataset, "train_official") == ["2007_a", "2007_b"]
    assert stems(dataset, "val") == ["2007_v", "2007_w"]
    assert (dataset.num_classes, dataset.class_names[20]) == (21, "tvmonitor")
    assert (dataset.ignore_label, dataset.max_hw) == (255, (40, 52))


def test_what_voc_labels_has_its_labels(open_voc, small_voc):
    train = {sample["stem"]: sample["labels"] for sample in read(open_voc(), "train")}
    by_voc = Image.open(small_voc / VOC / "SegmentationClass/2007_a.png")
    by_sbd = loadmat(small_voc / SBD / "cls/2008_x.mat")["GTcls"]["Segmentation"][0, 0]
    assert 255 in np.asarray(by_voc)
    assert 255 not in by_sbd
    np.testing.assert_array_equal(train["2007_a"], np.asarray(by_voc))
    np.testing.assert_array_equal(train["2008_x"], by_sbd)


def test_images_are_stored_as_found_and_labels_as_grey(open_voc, small_voc):
    builder = tfds.builder_from_directory(str(open_voc().data_dir))
    skip = {key: tfds.decode.SkipDecoding() for key in ("image", "labels")}
    for sample in builder.as_data_source("train", decoders=skip):
        stem = sample["stem"].decode()
        image = small_voc / VOC / f"JPEGImages/{stem}.jpg"
        assert sample["image"] == image.read_bytes()
        assert Image.open(io.BytesIO(sample["labels"])).mode == "L"


def test_label_images_do_in_place_of_the_release(open_voc, small_voc):
    by_release = open_voc()
    to_label_images(small_voc)
    assert open_voc().fingerprint == by_release.fingerprint
    # The same with a list, whatever its form.
    wanted = ["2007_a", "2008_x", "2008_y", "2008_z"]
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in wanted]
    (small_voc / LIST / "train_aug.txt").write_text("\n".join(lines))
    assert open_voc().fingerprint == by_release.fingerprint
    (small_voc / LIST / "train_aug.txt").write_text("2008_z\r\n2008_x\r\n")
    assert stems(open_voc(), "train") == ["2007_a", "2007_b", "2008_x", "2008_z"]


def to_label_images(root):
    """What conversion scripts make of SBD."""
    (root / VOC / "SegmentationClassAug").mkdir()
    for path in (root / SBD / "cls").iterdir():
        ids = loadmat(path)["GTcls"]["Segmentation"][0, 0]
        image = Image.fromarray(ids)
        image.putpalette(bytes(range(256)) * 3)
        image.save(root / VOC / f"SegmentationClassAug/{path.stem}.png")
        path.unlink()
    for name in ("train.txt", "val.txt"):
        (root / SBD / name).unlink()


def test_part_is_what_is_there(open_voc, small_voc):
    (small_voc / VOC / "JPEGImages/2007_a.jpg").unlink()
    (small_voc / VOC / "SegmentationClass/2007_w.png").unlink()
    (small_voc / SBD / "cls/2008_y.mat").unlink()
    dataset = open_voc()
    assert stems(dataset, "train") == ["2007_b", "2008_x", "2008_z"]
    assert stems(dataset, "train_official") == ["2007_b"]
    assert stems(dataset, "val") == ["2007_v"]


def test_voc_without_sbd_is_a_part(open_voc, small_voc):
    to_label_images(small_voc)
    for path in (small_voc / VOC / "SegmentationClassAug").iterdir():
        path.unlink()
    assert stems(open_voc(), "train") == ["2007_a", "2007_b"]


# --- what is refused ------------------------------------------------------------


def drop_list(root):
    (root / LIST / "val.txt").unlink()


def drop_list_of_sbd(root):
    (root / SBD / "val.txt").unlink()


def name_twice(root):
    (root / LIST / "train.txt").write_text("2007_b\n2007_a\n2007_b")


def leak_val(root):
    (root / LIST / "train_aug.txt").write_text("2008_x\n2007_w\n")


def leak_train(root):
    (root / LIST / "val.txt").write_text("2007_a\n2007_v\n")


def shrink_label(root):
    path = root / VOC / "SegmentationClass/2007_v.png"
    Image.open(path).resize((5, 4), Image.Resampling.NEAREST).save(path)


def stray_label(root):
    path = root / VOC / "SegmentationClass/2007_a.png"
    labels = np.array(Image.open(path))
    labels[3, :2] = 21
    Image.fromarray(labels).save(path)


def stray_mat(root):
    ids = np.full((36, 52), 20, np.uint8)
    ids[-1, -1] = 200
    save_mat(root / SBD / "cls/2008_x.mat", ids)


def save_mat(path, ids, struct="GTcls"):
    savemat(path, {struct: {"Segmentation": ids}})


def mat_of_instances(root):
    save_mat(root / SBD / "cls/2008_x.mat", np.ones((36, 52), np.uint8), "GTinst")


def mat_of_doubles(root):
    save_mat(root / SBD / "cls/2008_x.mat", np.ones((36, 52)))


def mat_without_struct(root):
    savemat(root / SBD / "cls/2008_x.mat", {"GTcls": np.ones((36, 52), np.uint8)})


def mat_that_is_text(root):
    (root / SBD / "cls/2008_x.mat").write_text("no labels " * 40)


def mat_cut_short(root):
    path = root / SBD / "cls/2008_x.mat"
    path.write_bytes(path.read_bytes()[:300])


def empty_mat(root):
    (root / SBD / "cls/2008_x.mat").write_bytes(b"")


def empty_image(root):
    (root / VOC / "JPEGImages/2007_b.jpg").write_bytes(b"")


def truncate_image(root):
    path = root / VOC / "JPEGImages/2007_b.jpg"
    path.write_bytes(path.read_bytes()[:-99])


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (drop_list, f"{LIST}/val.txt: is missing; download it"),
        (drop_list_of_sbd, f"{SBD}/val.txt: is missing; download it"),
        (name_twice, f"{LIST}/train.txt: must name an id once, got 2007_b again;"),
        (leak_val, f"{LIST}/train_aug.txt: must not name ids of val.txt, got 2007_w;"),
        (leak_train, f"{LIST}/train.txt: must not name ids of val.txt, got 2007_a; "),
        (
            shrink_label,
            f"{VOC}/SegmentationClass/2007_v.png: must have the size of its image, "
            "got 4 x 5, but the image has 36 x 52 (height x width);",
        ),
        (
            stray_label,
            f"{VOC}/SegmentationClass/2007_a.png: values must be 0..20 or "
            "ignore_label 255, got 21 (2 px);",
        ),
        (stray_mat, f"{SBD}/cls/2008_x.mat: values must be 0..20 or ignore_label 255,"),
        (mat_of_instances, f"{SBD}/cls/2008_x.mat: must hold GTcls.Segmentation, 8-"),
        (mat_of_doubles, f"{SBD}/cls/2008_x.mat: must hold GTcls.Segmentation, 8-bit"),
        (mat_without_struct, f"{SBD}/cls/2008_x.mat: must hold GTcls.Segmentation, 8"),
        (
            mat_that_is_text,
            f"{SBD}/cls/2008_x.mat: must be a sound file, got a damaged one (",
        ),
        (
            mat_cut_short,
            f"{SBD}/cls/2008_x.mat: must be a sound file, got a damaged one (",
        ),
        (empty_mat, f"{SBD}/cls/2008_x.mat: is empty; replace the file"),
        (empty_image, f"{VOC}/JPEGImages/2007_b.jpg: is empty; replace the file"),
        (
            truncate_image,
            f"{VOC}/JPEGImages/2007_b.jpg: must be a sound file, got a damaged one",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fault_names_file_rule_value_and_remedy(small_voc, faults_of, spoil, fault):
    spoil(small_voc)
    (found,) = faults_of()
    assert found.startswith(fault)
    assert ";" in found


def test_fewer_than_all_are_a_fault_unless_a_part_is_wanted(faults_of):
    remedy = "complete the data, or set partial=True to accept a part of it"
    assert faults_of(partial=False) == [
        f"train: expected 10,582 samples, found 5; {remedy}",
        f"train_official: expected 1,464 samples, found 2; {remedy}",
        f"val: expected 1,449 samples, found 2; {remedy}",
    ]


def test_what_is_missing_is_counted_and_named(small_voc, faults_of):
    (small_voc / SBD / "cls/2008_x.mat").unlink()
    (small_voc / VOC / "SegmentationClass/2007_v.png").unlink()
    for path in (small_voc / VOC / "JPEGImages").glob("200[78]_[abvxyz].jpg"):
        path.unlink()
    assert faults_of(partial=False)[3:] == [
        f"{VOC}/JPEGImages: lacks 6 of 7 files, 2007_a, 2007_b, 2007_v, 2008_x, 2008_y "
        "and 1 more; download them",
        f"{VOC}/SegmentationClass: lacks 1 of 4 files, 2007_v; download them",
        f"{SBD}/cls: lacks 1 of 3 files, 2008_x; download them",
    ]


def test_empty_place_is_told_what_to_download(tmp_path):
    with pytest.raises(DatasetError) as caught:
        voc2012(root=tmp_path)
    _, fault, *rest = str(caught.value).splitlines()
    assert fault == "  .: has no folder VOCdevkit/VOC2012; download it"
    text = "\n".join(rest)
    for part in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz", "cls,train.txt"):
        assert part in text


def test_nothing_to_take_is_a_fault(small_voc, faults_of):
    for path in (small_voc / VOC / "JPEGImages").iterdir():
        path.unlink()
    assert faults_of() == [".: holds no sample of any split; check the path"]


# --- the real lists and the real files ------------------------------------------


@pytest.fixture
def whole_voc(research_data, tmp_path):
    """All of VOC and SBD, every file of it empty; labels of SBD without their lists."""
    lists = research_data("voc_lists")
    root = tmp_path / "whole"
    ids = {k: (lists / f"{k}.txt").read_text().split() for k in ("train", "val")}
    aug = {Path(i).stem for i in (lists / "train_aug.txt").read_text().split()}
    touch(root / VOC / "JPEGImages", {*aug, *ids["val"]}, ".jpg")
    touch(root / VOC / "SegmentationClass", {*ids["train"], *ids["val"]}, ".png")
    # SBD labels some of VOC's val, which must stay out of training.
    touch(root / SBD / "cls", {*aug, *ids["val"][:500]} - {*ids["train"][9:]}, ".mat")
    (root / LIST).mkdir(parents=True)
    for name, some in ids.items():
        (root / LIST / f"{name}.txt").write_text("\n".join(some))
    return root


def touch(directory, stems, suffix):
    directory.mkdir(parents=True)
    for stem in stems:
        os.close(os.open(directory / f"{stem}{suffix}", os.O_CREAT))


def test_whole_set_has_the_splits_everyone_uses(research_data, whole_voc, tmp_path):
    lists = research_data("voc_lists")

    def splits():
        pairs = voc2012(root=whole_voc, data_dir=tmp_path).builder_config.pairs
        return {split: [pair.stem for pair in some] for split, some in pairs.items()}

    found = splits()
    sizes = {split: len(some) for split, some in found.items()}
    assert sizes == {"train": 10_582, "train_official": 1_464, "val": 1_449}
    assert found["train"] == sorted((lists / "train_aug.txt").read_text().split())
    # DrSleep's list, which ends without a newline, gives the same.
    pairs = (lists / "drsleep_train_pairs.txt").read_bytes()
    assert not pairs.endswith(b"\n")
    (whole_voc / LIST / "train_aug.txt").write_bytes(pairs)
    assert splits() == found
    fewer = pairs[: pairs.rindex(b"\n", 0, pairs.rindex(b"\n"))]
    (whole_voc / LIST / "train_aug.txt").write_bytes(fewer)
    with pytest.raises(DatasetError, match="expected 10,582 samples, found 10,580"):
        splits()


def test_real_sample_from_mat_files_and_from_label_images(research_data, tmp_path):
    real = research_data("voc_sample")
    pairs = voc2012(root=real, partial=True, data_dir=tmp_path).builder_config.pairs
    sizes = {split: len(some) for split, some in pairs.items()}
    assert sizes == {"train": 173, "train_official": 66, "val": 56}
    sbd = sorted(path.stem for path in (real / "sbd_format_synth/cls").iterdir())
    datasets = {}
    for source, (folder, place) in {
        "sbd_format_synth/cls": ("release", f"{SBD}/cls"),
        "VOC2012/SegmentationClassAug": ("images", "VOC2012/SegmentationClassAug"),
    }.items():
        root = tmp_path / folder
        (root / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
        for name in ("JPEGImages", "SegmentationClass"):
            (root / "VOC2012" / name).symlink_to(real / "VOC2012" / name)
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(real / source)
        lists = {"train": ["2007_000032"], "val": ["2007_000033"], "train_aug": sbd}
        for name, ids in lists.items():
            path = root / f"VOC2012/ImageSets/Segmentation/{name}.txt"
            path.write_text("\n".join(ids))
        datasets[folder] = open_dataset(
            "voc2012", root=root, partial=True, data_dir=tmp_path / "datasets"
        )
    assert datasets["release"].fingerprint == datasets["images"].fingerprint
    train, val = (read(datasets["release"], split) for split in ("train", "val"))
    assert [sample["stem"] for sample in train] == ["2007_000032", *sbd]
    for sample in (*train, *val):
        label = real / f"VOC2012/SegmentationClassAug/{sample['stem']}.png"
        np.testing.assert_array_equal(sample["labels"], np.asarray(Image.open(label)))
        image = real / f"VOC2012/JPEGImages/{sample['stem']}.jpg"
        np.testing.assert_array_equal(sample["image"], np.asarray(Image.open(image)))
        # Only what VOC labels has void.
        assert (255 in sample["labels"]) == (sample["stem"] not in sbd)
