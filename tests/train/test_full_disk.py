"""A full disk costs nothing but time, and is said in one line.

The disks are real: file systems in memory, each of a megabyte.
"""

import json
import re
import shutil
import subprocess
import time

import pytest
from runs import curve

from segloss.data import open_dataset
from segloss.errors import explain
from segloss.train import train
from segloss.trained import export, load_trained

pytestmark = pytest.mark.shared_out(by="module")

ROOM = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """The directory of a file system with room for a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root may mount a file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk, *, left):
    """Fills a disk but for a number of bytes, until `make_room`."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(max(0, free - left)))


def make_room(disk):
    (disk / "filler").unlink()


def refusal(action, *arguments, **options):
    """The line that a command prints for the error of an action."""
    with pytest.raises(OSError, match="No space left on device") as refused:
        action(*arguments, **options)
    return explain(refused.value)


def says(line, disk, path, wanted=""):
    """Whether a line names a path, its disk, what is free and what is wanted."""
    start = rf"{path}: No space left on device: the disk at {disk} has [\d.]+ \w+ free"
    end = "; free some space, and give the same command again\\."
    return re.fullmatch(start + wanted + end, line)


# Of writes of orbax that fail after it has given up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_training_stops_in_a_line_and_goes_on_when_there_is_room(
    tiny_config, disk, finished_run, capfd
):
    run = disk / "run"

    def fill_at_3(step):
        if step == 3:
            while not (run / "checkpoints" / "2").is_dir():  # saved in the background
                time.sleep(0.01)
            fill(disk, left=12_000)

    line = refusal(train, tiny_config, run, on_step=fill_at_3)
    wanted = r", and each of up to three checkpoints needs about \d+\.\d kB"
    assert says(line, disk, run, wanted), line
    assert "Traceback" not in capfd.readouterr().err
    # The checkpoint before is whole, and the disk still full.
    assert load_trained(tiny_config, run).step == 2
    line = refusal(export, tiny_config, run)
    assert says(line, disk, r".*/exported\S*"), line
    assert not [x for x in run.iterdir() if "exported" in x.name]
    make_room(disk)
    steps = []
    train(tiny_config, run, on_step=steps.append)
    assert steps == [3, 4]
    assert curve(run) == curve(finished_run)

    results = (run / "results.json").read_text()
    for name in ("results.json", "confusions.npz"):
        (run / name).unlink()
    fill(disk, left=2_000)
    line = refusal(train, tiny_config, run)
    assert says(line, disk, rf"{run}\S*", ".*"), line
    make_room(disk)
    train(tiny_config, run)
    first, again = (
        json.loads(x) for x in (results, (run / "results.json").read_text())
    )
    assert first["summary"] == again["summary"]
    assert [x.name for x in run.iterdir() if x.name.startswith(".")] == []


def test_a_dataset_and_its_index_that_do_not_fit_are_written_later(disk, small_folder):
    def open_here():
        return open_dataset("folder", root=str(small_folder), data_dir=str(disk))

    fill(disk, left=20_000)
    line = refusal(open_here)
    wanted = r", and the dataset needs about \d+\.\d kB, as much as its files"
    assert says(line, disk, rf"{disk}/folder/\S*", wanted), line
    assert [x for x in disk.rglob("*") if x.is_file()] == [disk / "filler"]
    make_room(disk)
    dataset = open_here()
    fill(disk, left=0)
    line = refusal(dataset.class_index, "train")
    wanted = r", and the class index needs about 48 bytes"
    assert says(line, disk, rf"{dataset.data_dir}\S*", wanted), line
    make_room(disk)
    assert dataset.class_index("train").pixel_counts.shape == (4, 3)
