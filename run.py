"""Trains, evaluates, predicts, exports or inspects: flags to config to `segloss.train`.

python run.py --config=configs/demo.py --workdir=runs/demo
python run.py --config=configs/folder.py --config.data.root=DIR --workdir=RUN
python run.py --config=configs/demo.py --mode=inspect
python run.py --workdir=RUN --mode=evaluate --split=test
python run.py --workdir=RUN --mode=predict --input=IMAGES
python run.py --workdir=RUN --mode=export --set=evaluate.flip=True
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from segloss import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "Needed for train alone.")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run lies; a run found there goes on. For inspect, runs/inspect will do.",
)
MODES = ["train", "evaluate", "predict", "export", "inspect"]
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE, in the config or the run's.")
SPLIT = flags.DEFINE_string("split", None, "evaluate: the split, if not the config's.")
INPUT = flags.DEFINE_string("input", None, "predict: an image or a folder of images.")
SIZE = flags.DEFINE_list("size", [], "export: the images' HEIGHT,WIDTH, if not any.")


def main(argv: list[str]) -> None:
    if WORKDIR.value is None and MODE.value != "inspect":
        raise ValueError("--workdir is missing; it says where the run lies.")
    workdir = pathlib.Path(WORKDIR.value or "runs/inspect")
    if MODE.value == "train" and CONFIG.value is None:
        raise ValueError("--mode=train needs --config.")
    if MODE.value == "predict" and INPUT.value is None:
        raise ValueError("--mode=predict needs --input.")
    # Only now, so that --help and wrong flags are answered at once.
    from segloss import train

    config = CONFIG.value or train.read_config(workdir)
    config = train.change_fields(config, SET.value)
    if MODE.value == "train":
        train.train(config, workdir)
    elif MODE.value == "inspect":
        train.inspect_dataset(config, workdir)
    elif MODE.value == "evaluate":
        train.evaluate_run(config, workdir, split=SPLIT.value)
    elif MODE.value == "export":
        image_hw = tuple(int(n) if n.isdecimal() else n for n in SIZE.value)
        train.export(config, workdir, image_hw=image_hw or None)
    else:
        train.predict(config, workdir, INPUT.value)


if __name__ == "__main__":
    cli.run(main)
