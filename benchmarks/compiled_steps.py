"""One training step as the chips' own compilers make it, without a chip.

python -m benchmarks.compiled_steps --chip=v5e:2x2 --network=unet --results=runs/steps
python -m benchmarks.compiled_steps --chip=h100 --network=deeplab_v3
python -m benchmarks.compiled_steps --table

The step is `segloss.train.step.train_step`, the function that is pmapped, here under
`shard_map` over the chips of a topology: augmentation, the network in bfloat16,
cross-entropy and soft Dice, SGD. It is lowered from shapes alone, so nothing runs. A
TPU's compiler takes five to twenty minutes for a step.

Memory, FLOPs and traffic are those of one chip. Memory holds what the step takes and
returns, and its temporaries.
"""

import functools
import json
import sys
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console

from benchmarks import chips
from benchmarks.environment import versions
from benchmarks.step_programs import NETWORKS, lower_step, make_table, measure
from segloss.report import markdown_table

CHIP = flags.DEFINE_string("chip", "v5e:2x2", "h100, or a TPU's topology.")
NETWORK = flags.DEFINE_enum("network", "unet", list(NETWORKS), "Network.")
SIZE = flags.DEFINE_integer("size", None, "Height and width, if not the network's.")
BATCH = flags.DEFINE_integer("batch", 8, "Images of one chip.", lower_bound=1)
RESULTS = flags.DEFINE_string("results", "runs/steps", "Folder of the results.")
TABLE = flags.DEFINE_bool("table", False, "Only show the results that are there.")
OUTPUT = flags.DEFINE_string("output", None, "A markdown file to write.")
KEEP = flags.DEFINE_bool("keep_hlo", False, "Keep the compiled program as text, too.")

PACKAGES = ("jax", "flax", "optax", "libtpu", "jax-cuda12-plugin")


def compile_one(folder: Path) -> None:
    """Compiles the step that the flags choose, and writes its result."""
    name = CHIP.value
    devices = chips.devices(*(("v5e", name) if name.startswith("v5e") else (name,)))
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
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags start with --.")
    folder = Path(RESULTS.value)
    if not TABLE.value:
        compile_one(folder)
    results = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    results.sort(key=lambda r: (-list(NETWORKS).index(r["network"]), r["chips"]))
    table = make_table(results[::-1])
    Console(width=None if sys.stdout.isatty() else 200).print(table, soft_wrap=True)
    if OUTPUT.value is not None:
        Path(OUTPUT.value).write_text(markdown_table(table) + "\n")


if __name__ == "__main__":
    app.run(main)
