import json

import numpy as np
import pytest

from segloss.data.class_index import ClassIndex
from segloss.data.daformer import read_daformer, write_daformer

# Class 1 is in no sample, class 3 in one.
INDEX = ClassIndex(np.array([[5, 0, 2, 0], [0, 0, 7, 9]], np.int32), "c0ffee")
STEMS = ["aachen_0", "bochum_1"]
FILES = {
    "sample_class_stats.json": [
        {"0": 5, "2": 2, "file": "aachen_0.png"},
        {"2": 7, "3": 9, "file": "bochum_1.png"},
    ],
    "sample_class_stats_dict.json": {
        "aachen_0.png": {"0": 5, "2": 2},
        "bochum_1.png": {"2": 7, "3": 9},
    },
    "samples_with_class.json": {
        "0": [["aachen_0.png", 5]],
        "2": [["aachen_0.png", 2], ["bochum_1.png", 7]],
        "3": [["bochum_1.png", 9]],
    },
}


def read(directory, stems=STEMS, **options):
    return read_daformer(
        directory, stems, **{"num_classes": 4, "fingerprint": "c0ffee"} | options
    )


def write_list(directory, content):
    (directory / "sample_class_stats.json").write_text(json.dumps(content))


def test_files_are_those_of_daformer(tmp_path):
    write_daformer(INDEX, tmp_path, STEMS)
    written = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert written == FILES


@pytest.mark.parametrize("suffix", [".png", "_gtFine_labelTrainIds.png"])
def test_counts_survive_the_round_trip(tmp_path, suffix):
    write_daformer(INDEX, tmp_path, STEMS, suffix=suffix)
    back = read(tmp_path, suffix=suffix)
    np.testing.assert_array_equal(back.pixel_counts, INDEX.pixel_counts)
    assert (back.fingerprint, back.pixel_counts.dtype) == ("c0ffee", np.int32)


def test_daformers_own_order_and_folders_do_not_matter(tmp_path):
    first, second = FILES["sample_class_stats.json"]
    second = {**second, "file": "data/gtFine/train/bochum/bochum_1.png"}
    write_list(tmp_path, [second, first])
    np.testing.assert_array_equal(read(tmp_path).pixel_counts, INDEX.pixel_counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:1], "1 of 2 are missing, bochum_1.png first"),
        (lambda content: content + content[:1], "got aachen_0.png twice"),
        (lambda content: [*content, {"file": "x/c.png"}], "got x/c.png of no stem"),
        (lambda content: [{**content[0], "4": 1}], "0..3, got '4': 1 of aachen_0.png"),
        (lambda content: [{**content[0], "void": 1}], "got 'void': 1 of aachen_0"),
        (lambda content: [{**content[0], "1": -1}], "got '1': -1 of aachen_0.png"),
        (lambda content: [{**content[0], "1": 2**31}], "got '1': 2147483648 of"),
        (lambda content: [{**content[0], "1": 0.5}], "got '1': 0.5 of aachen_0.png"),
        (lambda content: [{"0": 5}], r"be a list of .*, got KeyError\('file'\)"),
        (lambda content: [{"file": 5}], r"be a list of .*, got TypeError"),
        (lambda content: FILES["sample_class_stats_dict.json"], "be a list of"),
        (lambda content: 5, "be a list of"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    write_list(tmp_path, change(FILES["sample_class_stats.json"]))
    with pytest.raises(ValueError, match=rf"stats\.json must .*{message}"):
        read(tmp_path)


def test_damaged_file_is_refused(tmp_path):
    (tmp_path / "sample_class_stats.json").write_bytes(b'[{"0": 5, "fi')
    with pytest.raises(ValueError, match="again with DAFormer's tools/convert_data"):
        read(tmp_path)


def test_each_sample_needs_a_stem_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="must name 2 samples, got 1"):
        write_daformer(INDEX, tmp_path, STEMS[:1])
    with pytest.raises(ValueError, match="stems must differ, got 'aachen_0' twice"):
        write_daformer(INDEX, tmp_path, ["aachen_0"] * 2)
    with pytest.raises(ValueError, match="stems must differ, got 'aachen_0' twice"):
        read(tmp_path, ["aachen_0"] * 2)
