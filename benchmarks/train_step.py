"""Speed and memory of the pmapped training step, compared with torch.

python -m benchmarks.train_step
python -m benchmarks.train_step --size=65 --batch=2 --models=unet --rounds=3
python -m benchmarks.train_step --batch=16 --calls=5 --output=train_step.md
python -m benchmarks.train_step --models=deeplab_v3 --frozen=backbone/

The step is that of `segloss.train` on one device, with cross-entropy and SGD with
momentum on a batch already on the device. Augmentation is left out because torch would
run it in its loader. Peers are torchvision's DeepLab v3 and the same U-Net, channels
last, with `torch.compile` where it works. All candidates take turns in one process.

FLOPs are counted by XLA before optimisation; a peer computes the same and gets the same
count. The share of peak is relative to the vendor's figure (`PEAK_FLOPS`), or for other
devices to the rate of a large matrix product timed with the others. Memory of our step
is what XLA plans for it, including arguments; memory of torch is the peak of its
tensors, which torch counts on GPUs only.
"""

import os
import statistics

import jax
from absl import flags

from benchmarks.environment import command, device, publish, versions
from benchmarks.steps import MATMUL, make_batch, make_candidates, matmul, step_table
from benchmarks.timing import interleave, keep_freed_memory
from segloss import cli

MODELS = flags.DEFINE_multi_enum(
    "models", ["unet", "deeplab_v3"], ["unet", "deeplab_v3"], "Networks."
)
SIZE = flags.DEFINE_integer("size", 513, "Height and width.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 8, "Images per step.", lower_bound=2)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Dtype of the computation; default bfloat16, on CPU float32.",
)
FROZEN = flags.DEFINE_multi_string(
    "frozen", [], "Also time our step with the parameters frozen that this matches."
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Timings per candidate.", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 1, "Steps timed together.", lower_bound=1)
COMPILE = flags.DEFINE_bool("torch_compile", True, "Use torch.compile.")
OUTPUT = flags.DEFINE_string("output", None, "Markdown file to write.")

PACKAGES = ("jax", "flax", "optax", "torch", "torchvision")
# Dense peak FLOP/s by `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "bfloat16": {
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H200": 989e12,
        "NVIDIA L4": 121e12,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v6 lite": 918e12,
    },
}


def describe(dtype: str, peak: float, source: str) -> str:
    """Returns a text with the run's command, device, peak and versions.

    `peak` is in FLOP/s, and `source` says where it is from.
    """
    return (
        f"{command('benchmarks.train_step')}\n\n{BATCH.value} images of "
        f"{SIZE.value}x{SIZE.value}, {dtype}, median of {ROUNDS.value} rounds on "
        f"{device()}; peak {peak / 1e12:.3g} TFLOP/s {source}; {versions(PACKAGES)}.\n"
    )


def main(argv: list[str]) -> None:
    # Torch needs memory of the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    keep_freed_memory()
    dtype = DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    candidates, flops, failures = make_candidates(
        MODELS.value,
        make_batch(SIZE.value, BATCH.value),
        dtype=dtype,
        calls=CALLS.value,
        torch_compile=COMPILE.value,
        frozen=FROZEN.value,
    )
    peak = PEAK_FLOPS.get(dtype, {}).get(jax.devices()[0].device_kind)
    if peak is None:
        candidates[MATMUL], product = matmul(dtype, CALLS.value)
    calls = {key: candidate.call for key, candidate in candidates.items()}
    seconds = {
        key: [t / CALLS.value for t in times]
        for key, times in interleave(calls, ROUNDS.value).items()
    }
    source = "from its data sheet"
    if peak is None:
        peak = product / statistics.median(seconds[MATMUL])
        source = "from a matrix product"
    table = step_table(candidates, seconds, flops, batch_size=BATCH.value, peak=peak)
    notes = describe(dtype, peak, source) + "".join(f"\n- {x}" for x in failures)
    publish([table], notes, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main)
