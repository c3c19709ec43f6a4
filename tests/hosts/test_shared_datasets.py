"""Several processes prepare a dataset once, and refuse data that differ."""

import numpy as np
import pytest
from PIL import Image
from processes import run_together

pytestmark = pytest.mark.shared_out(by="module")

# Two of three processes say that they run on another host.
PREPARED = """
import socket, sys
from configs import folder
from segloss import hosts
from segloss.data.class_index import LabelCounter
from segloss.data.datasets.builder import SegmentationBuilder
from segloss.train import make_setup

me = hosts.process_index()
host = min(me, 1)
socket.gethostname = lambda: f"host{host}"

def noting(owner, name, note):
    method = getattr(owner, name)
    def noted(self, *args, **kwargs):
        done.append(note)
        return method(self, *args, **kwargs)
    setattr(owner, name, noted)

noting(SegmentationBuilder, "_download_and_prepare", "builds")
noting(LabelCounter, "count", "counts")
config = folder.get_config("smoke").unlock()
config.data.root = sys.argv[1]
config.augment.keep_classes = True
config.sampler = dict(name="balance_batch", batch_max=4, batch_cl=2)
leaders = {True: [0], False: [0, 1]}
for shared, place in (True, "shared"), (False, f"of_host{host}"):
    done = []
    config.data.data_dir = f"{sys.argv[2]}/{place}"
    config.data.shared_files = shared
    setup = make_setup(config)
    assert len(setup.dataset.class_index("train").pixel_counts) == 4
    # The index of whole images, and that of windows.
    expected = ["builds", "counts", "counts"] if me in leaders[shared] else []
    assert done == expected, (shared, me, done)
"""

DIFFERING = """
import sys
from configs import folder
from segloss import hosts
from segloss.config import open_configured_dataset, parse_config
config = folder.get_config("smoke").unlock()
config.data.root = sys.argv[1 + hosts.process_index()]
config.data.data_dir = sys.argv[3]
config.data.shared_files = False
try:
    open_configured_dataset(parse_config(config))
except ValueError as error:
    sys.exit(f"error: {error}")
"""


def write_folder(root, train):
    rng = np.random.default_rng(train)
    for split, n in {"train": train, "val": 2}.items():
        for kind, shape in {"images": (36, 40, 3), "labels": (36, 40)}.items():
            (root / split / kind).mkdir(parents=True)
            for i in range(n):
                values = rng.integers(0, 2, shape, np.uint8)
                Image.fromarray(values).save(root / split / kind / f"{i}.png")
    (root / "classes.txt").write_text("0 a\n1 b\n")
    return root


def test_one_process_or_one_of_each_host_makes_dataset_and_indices(tmp_path):
    run_together(PREPARED, 3, write_folder(tmp_path / "data", 4), tmp_path)


def test_hosts_whose_data_differ_are_refused_by_name(tmp_path):
    roots = [write_folder(tmp_path / f"data{n}", n) for n in (4, 5)]
    outputs = run_together(DIFFERING, 2, *roots, tmp_path / "prepared", code=1)
    lines = [output.splitlines()[-1] for output in outputs]
    assert lines[0] == lines[1]
    for part in (
        "error: config.data: folder differs between hosts: its fingerprint is ",
        " for process 1 on host ",
        "(2 classes; samples: 5 in train, 2 in val), but ",
        " for process 0 on host ",
        "(2 classes; samples: 4 in train, 2 in val). Give all hosts the same files.",
    ):
        assert part in lines[0]
