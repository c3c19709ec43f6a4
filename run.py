"""Command line to train, evaluate, predict, export and inspect.

python run.py --config=configs/demo.py --workdir=runs/demo
python run.py --config=configs/folder.py --config.data.root=DIR --workdir=RUN
python run.py --config=configs/demo.py --mode=inspect
python run.py --workdir=RUN --mode=evaluate --split=test
python run.py --workdir=RUN --mode=predict --input=IMAGES    # or --mode=export
python run.py ... --coordinator_address=HOST:PORT --num_processes=N --process_id=I
"""

from absl import flags

from segloss import cli

CONFIG = cli.define_config("Needed for a new run.", new_fields=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a new or resumed run.")
MODES = ["train", "evaluate", "predict", "export", "inspect"]
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE: changes a config field.")
TRAINING = cli.define_training_flags(MODE)
SPLIT = flags.DEFINE_string("split", None, "evaluate: the split, if not the config's.")
INPUT = flags.DEFINE_multi_string("input", [], "predict: an image or a folder of them.")
OUTPUT = flags.DEFINE_string("output", None, "predict: instead of RUN/predictions.")
PROBS = flags.DEFINE_string("probabilities", None, "predict: png or npy.")
THRESHOLD = flags.DEFINE_float("threshold", None, "predict: of class 1 of two classes.")
SIZE = flags.DEFINE_list("size", [], "export: HEIGHT,WIDTH of images; default any.")
OWNERS = dict.fromkeys(("input", "output", "probabilities", "threshold"), "predict")
OWNERS |= {"split": "evaluate", "size": "export"}


def main(argv: list[str]) -> object:
    cli.check_mode(MODE.value, OWNERS, needs_workdir=MODE.value != "inspect")
    # Imported here, so that --help is fast and each mode imports only what it needs.
    from segloss.config import as_run_folder, change_fields, follow_names, read_config

    workdir = as_run_folder("runs/inspect" if WORKDIR.value is None else WORKDIR.value)
    config = change_fields(CONFIG.value or read_config(workdir), SET.value)
    given = [*cli.given_fields(), *(change.split("=")[0] for change in SET.value)]
    if MODE.value in ("train", "inspect"):
        from segloss import inspection, train

        start = train.train if MODE.value == "train" else inspection.inspect_dataset
        return start(follow_names(config, given, train.CHOICES), workdir, **TRAINING())
    config = follow_names(config, given)
    from segloss import trained

    if MODE.value == "evaluate":
        return trained.evaluate_run(config, workdir, split=SPLIT.value)
    if MODE.value == "predict":
        how = dict(probabilities=PROBS.value, threshold=THRESHOLD.value)
        return trained.predict(config, workdir, INPUT.value, output=OUTPUT.value, **how)
    hw = tuple(int(n) if n.isdecimal() else n for n in SIZE.value) or None
    return trained.export(config, workdir, image_hw=hw)


if __name__ == "__main__":
    cli.run(main, hosts_modes=["train", "evaluate"])
