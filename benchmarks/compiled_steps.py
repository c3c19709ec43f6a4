"""Compiles one training step for TPUs or an H100, without the chip.

python -m benchmarks.compiled_steps --chip=v5e:2x2 --network=unet --results=runs/steps
python -m benchmarks.compiled_steps --chip=h100:8 --network=deeplab_v3
python -m benchmarks.compiled_steps --table

The step is `segloss.train.step.train_step`, the function that training maps with
`pmap`, here under `shard_map` over the chips of a topology: augmentation, the network
in bfloat16, cross-entropy and soft Dice, SGD. It is lowered from shapes, so nothing
runs. The TPU compiler takes five to twenty minutes per step.

Memory, FLOPs and traffic are per chip. Memory is the sum of arguments, results and
temporaries of the step.
"""

import functools
import json
from pathlib import Path

import jax
from absl import flags

from benchmarks import chips
from benchmarks.environment import publish, versions
from benchmarks.step_programs import NETWORKS, lower_step, measure, program_table
from segloss import cli

CHIP = flags.DEFINE_string(
    "chip", "v5e:2x2", "h100, h100:8 for 8 GPUs of one host, or a TPU topology."
)
NETWORK = flags.DEFINE_enum("network", "unet", list(NETWORKS), "Network.")
SIZE = flags.DEFINE_integer("size", None, "Height and width; default per network.")
BATCH = flags.DEFINE_integer("batch", 8, "Images per chip.", lower_bound=1)
RESULTS = flags.DEFINE_string("results", "runs/steps", "Folder for the results.")
TABLE = flags.DEFINE_bool("table", False, "Show stored results only.")
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")
KEEP = flags.DEFINE_bool("keep_hlo", False, "Also save the compiled program as text.")

PACKAGES = ("jax", "flax", "optax", "libtpu", "jax-cuda12-plugin")


def compile_one(folder: Path) -> None:
    """Compiles the step that the flags select.

    Writes its figures to `NETWORK.CHIP.json` in `folder`, and with `--keep_hlo` the
    program to `NETWORK.CHIP.hlo`.
    """
    name = CHIP.value
    chip, _, shape = name.partition(":")
    topology = f"1x1x{shape or 1}" if chip == "h100" else name
    devices = chips.devices(chip, topology)
    size = SIZE.value or NETWORKS[NETWORK.value]
    lower = functools.partial(lower_step, size=size, batch=BATCH.value)

    def flops() -> float:
        lowered = lower(jax.devices("cpu")[:1], NETWORK.value)
        return lowered.cost_analysis()["flops"]

    result, text = measure(lower(devices, NETWORK.value), flops)
    result = dict(
        chip=name,
        network=NETWORK.value,
        size=size,
        batch=BATCH.value,
        chips=len(devices),
        hosts=len({device.process_index for device in devices}),
        versions=versions(PACKAGES),
        **result,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NETWORK.value}.{name.replace(':', '-')}"
    Path(f"{path}.json").write_text(json.dumps(result, indent=1) + "\n")
    if KEEP.value:
        Path(f"{path}.hlo").write_text(text)


def main(argv: list[str]) -> None:
    folder = Path(RESULTS.value)
    if not TABLE.value:
        compile_one(folder)
    results = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    results.sort(key=lambda r: (-list(NETWORKS).index(r["network"]), r["chips"]))
    publish([program_table(results[::-1])], "", OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)
