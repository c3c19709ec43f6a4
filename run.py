"""Trains, evaluates or predicts: flags to config to `segloss.train`.

python run.py --config=configs/demo.py --workdir=runs/demo
python run.py --config=configs/folder.py --config.data.root=DIR --workdir=RUN
python run.py --workdir=RUN --mode=predict --input=IMAGES
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the run; evaluate and predict can do without."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lies; a run found there goes on.", required=True
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "predict"], "What to do."
)
INPUT = flags.DEFINE_string("input", None, "predict: an image or a folder of images.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags start with --.")
    if not logging.level_debug():
        logging.set_verbosity(logging.WARNING)
    # After the flags, so that --help and a mistyped flag answer at once.
    from segloss import train

    workdir = pathlib.Path(WORKDIR.value)
    try:
        if MODE.value == "train":
            if CONFIG.value is None:
                raise app.UsageError("--mode=train needs --config.")
            train.train(CONFIG.value, workdir)
            return
        config = CONFIG.value or train.read_config(workdir)
        if MODE.value == "evaluate":
            train.evaluate_run(config, workdir)
        elif INPUT.value is None:
            raise app.UsageError("--mode=predict needs --input.")
        else:
            train.predict(config, workdir, INPUT.value)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the newest checkpoint.")
    except (ValueError, FileNotFoundError, train.NonFiniteError) as error:
        # What the user can mend is one line; --verbosity=1 shows where it came from.
        if logging.level_debug():
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
