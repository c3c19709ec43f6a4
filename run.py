"""Trains, evaluates, predicts or inspects: flags to config to `segloss.train`.

python run.py --config=configs/demo.py --workdir=runs/demo
python run.py --config=configs/folder.py --config.data.root=DIR --workdir=RUN
python run.py --config=configs/demo.py --mode=inspect
python run.py --workdir=RUN --mode=evaluate --split=test
python run.py --workdir=RUN --mode=predict --input=IMAGES
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from segloss import cli

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; but for train, that of the run will do."
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run lies; a run found there goes on. For inspect, runs/inspect will do.",
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "predict", "inspect"], "What to do."
)
SPLIT = flags.DEFINE_string("split", None, "evaluate: the split, if not the config's.")
INPUT = flags.DEFINE_string("input", None, "predict: an image or a folder of images.")


def main(argv: list[str]) -> None:
    from segloss import train

    if WORKDIR.value is None and MODE.value != "inspect":
        raise ValueError("--workdir is missing; it says where the run lies.")
    workdir = pathlib.Path(WORKDIR.value or "runs/inspect")
    if MODE.value == "train":
        if CONFIG.value is None:
            raise ValueError("--mode=train needs --config.")
        train.train(CONFIG.value, workdir)
        return
    config = CONFIG.value or train.read_config(workdir)
    if MODE.value == "inspect":
        train.inspect_dataset(config, workdir)
    elif MODE.value == "evaluate":
        train.evaluate_run(config, workdir, split=SPLIT.value)
    elif INPUT.value is None:
        raise ValueError("--mode=predict needs --input.")
    else:
        train.predict(config, workdir, INPUT.value)


if __name__ == "__main__":
    cli.run(main)
