"""Datasets of killed processes are removed, and damaged ones are named or remade."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segloss.data import open_dataset
from segloss.errors import SeglossError
from segloss.locking import locked


def scenes(data_dir):
    return open_dataset(
        "longtail_scenes", data_dir=str(data_dir), train=4, val=2, image_hw=(32, 32)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return scenes(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole, tmp_path):
    """The same dataset elsewhere, to be damaged."""
    data_dir = whole.data_dir.parents[2]
    shutil.copytree(data_dir, tmp_path / "copy")
    return tmp_path / "copy" / whole.data_dir.relative_to(data_dir)


def test_what_killed_builders_left_is_removed_and_living_ones_are_waited_for(
    tmp_path, whole, capsys
):
    folder = tmp_path / whole.data_dir.relative_to(whole.data_dir.parents[2]).parent
    (folder / "incomplete.ABC123_1.0.0").mkdir(parents=True)
    (folder / "incomplete.ABC123_1.0.0" / "shard-0.json").touch()
    with ThreadPoolExecutor(1) as other:
        with locked(folder):
            opened, said = other.submit(scenes, tmp_path), ""
            while "waits for process" not in said:
                assert not opened.done()
                said += capsys.readouterr().out
            assert (folder / "incomplete.ABC123_1.0.0").is_dir()
        assert opened.result().fingerprint == whole.fingerprint
    assert [x.name for x in folder.iterdir()] == ["1.0.0"]


def test_a_dataset_that_a_killed_builder_left_is_not_linked(tmp_path, small_folder):
    def open_here():
        return open_dataset(
            "folder", root=str(small_folder), data_dir=str(tmp_path / "made")
        )

    made = open_here().data_dir
    made.rename(made.with_name(f"incomplete.ABC123_{made.name}"))
    assert open_here().data_dir == made
    assert [x.name for x in made.parent.iterdir()] == [made.name]


def halved(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "metadata.json"]
)
def test_damaged_descriptions_are_named_with_what_to_do(copy, name):
    path = copy / name
    sound = path.read_bytes()
    for content in (b"{}", b"[]", b"null", b"", b"\xff\xfe", halved(sound)):
        path.write_bytes(content)
        with pytest.raises(SeglossError) as refused:
            scenes(copy.parents[2])
        message = str(refused.value)
        assert message.startswith(str(copy)), message
        assert f"{name} is damaged (" in message or f"{name} or features" in message
        assert message.endswith(f"; delete {copy} to prepare the dataset again.")
        assert "\n" not in message


@pytest.mark.parametrize("damage", [halved, lambda content: content[:-1]])
def test_damaged_records_are_named_with_what_to_do(copy, damage):
    (path,) = copy.glob("*val.array_record*")
    path.write_bytes(damage(path.read_bytes()))
    message = (
        r"sample 0 of split 'val' cannot be read, its file is damaged \(.*\); delete "
        "that directory to prepare the dataset again"
    )
    with pytest.raises(SeglossError, match=message):
        scenes(copy.parents[2]).source("val")[0]


def test_a_damaged_index_is_made_again(copy):
    dataset = scenes(copy.parents[2])
    expected = np.array(dataset.class_index("train").pixel_counts)
    path = copy / "class_index-train.npy"
    sound = path.read_bytes()
    np.save(path.with_name("other.npy"), np.zeros((9, 21), np.int32))
    other = path.with_name("other.npy").read_bytes() + sound[sound.rindex(b"\nsegl") :]
    for content, problem in (
        (halved(sound), r"is damaged \(.*\)"),
        (b"", r"is damaged \(.*\)"),
        (other, r"is damaged \(its contents have changed since it was written\)"),
    ):
        path.write_bytes(content)
        message = rf"class_index-train\.npy {problem}; it is made again\.$"
        with pytest.warns(UserWarning, match=message):
            index = dataset.class_index("train")
        np.testing.assert_array_equal(index.pixel_counts, expected)
        assert path.read_bytes() == sound
