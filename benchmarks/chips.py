"""Compiles functions for TPUs and GPUs without the hardware.

libtpu, and JAX's CUDA plugin with a description of the GPU, compile on any x86-64 Linux
machine. Their memory figures are exact and reproducible; they do not predict run time.
Each compiler needs its own environment: `make bench-compiled`.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from benchmarks import hlo


class Chip(NamedTuple):
    """A chip, and how to compile for it on a machine without it.

    Attributes:
        title: name in tables.
        package: Python package that contains the compiler.
        platform: JAX's name of the platform.
        topology: arguments of `topologies.get_topology_desc` that describe the chips.
        environment: variables that the compiler reads when it starts.
        jax_platforms: platforms that JAX may initialise; the CPU runs JAX's own
            computations.
    """

    title: str
    package: str
    platform: str
    topology: Mapping[str, str]
    environment: Mapping[str, str]
    jax_platforms: str


_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_TPU_ENVIRONMENT = {
    # Do not query a cloud metadata server for the TPU type.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # libtpu locks the TPU for one process; without a TPU the lock is not needed.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_GPU_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    # Autotuning would run kernels, which needs a GPU.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}


def _tpu(title: str, topology: str) -> Chip:
    name = {"topology_name": topology}
    return Chip(title, "libtpu", "tpu", name, _TPU_ENVIRONMENT, "cpu")


CHIPS = {
    "v5e": _tpu("TPU v5e", "v5e:2x2"),
    "v6e": _tpu("TPU v6e", "v6e:2x2"),
    "h100": Chip(
        "H100",
        "jax_cuda12_plugin",
        "cuda",
        {"target_config": _H100, "topology": "1x1x1"},
        _GPU_ENVIRONMENT,
        "cpu,cuda",
    ),
}


class Compiled(NamedTuple):
    """Figures of a function compiled for a chip.

    Attributes:
        traffic_bytes: bytes read and written, including padding of the chip's layouts.
        temporary_bytes: memory needed in addition to arguments and results.
        compile_seconds: CPU seconds of compilation, summed over all cores; they depend
            little on the load of the machine.
        unknown_loops: number of loops with an unknown trip count; `traffic_bytes` has
            their bodies once.
    """

    traffic_bytes: int
    temporary_bytes: int
    compile_seconds: float
    unknown_loops: int


def installed() -> list[str]:
    """Returns the keys of `CHIPS` for which this environment has a compiler."""
    return [
        name for name, chip in CHIPS.items() if importlib.util.find_spec(chip.package)
    ]


def devices(name: str, topology: str | None = None) -> list[jax.Device]:
    """Returns devices to compile for; call this before JAX initialises its backends.

    Args:
        name: a key of `CHIPS`.
        topology: chips to compile for instead of the default, such as "v5e:4x4" for a
            TPU, or "1x2x8" for 2 hosts of 8 GPUs.
    """
    chip = CHIPS[name]
    flags = {"XLA_FLAGS": _with_flags(chip.environment.get("XLA_FLAGS", ""))}
    os.environ.update(chip.environment | flags)
    jax.config.update("jax_platforms", chip.jax_platforms)
    if chip.platform == "cuda":
        _find_no_gpu()
    described = dict(chip.topology)
    if topology:
        key = "topology_name" if chip.platform == "tpu" else "topology"
        described[key] = topology
    return topologies.get_topology_desc(platform=chip.platform, **described).devices


def _with_flags(flags: str) -> str:
    given = os.environ.get("XLA_FLAGS", "")
    return given if flags in given else f"{given} {flags}"


def _find_no_gpu() -> None:
    """Lets JAX compile for a GPU on a machine without one (jax-ml/jax issue 23971)."""
    from jax._src import xla_bridge

    canonicalize = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda platform: (
        "cuda" if platform in ("gpu", "cuda") else canonicalize(platform)
    )


def lower(device: jax.Device, function: Callable, *shapes: Any) -> jax.stages.Lowered:
    """Lowers a function for one chip, given the shapes and dtypes of its arguments."""
    place = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )
    return jax.jit(function).lower(*placed)


def measure(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a lowered function; returns its traffic, memory and compile time."""
    start = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - start
    module = hlo.parse(compiled.as_text())
    counted = hlo.traffic(module)
    traffic_bytes = counted.num_bytes
    cost = compiled.cost_analysis()
    if cost:
        # A TPU compiler reports traffic, but counts the body of each loop once.
        repeats = counted.num_bytes - hlo.traffic(module, every_round=False).num_bytes
        traffic_bytes = round(cost["bytes accessed"]) + repeats
    return Compiled(
        traffic_bytes,
        compiled.memory_analysis().temp_size_in_bytes,
        seconds,
        counted.unknown_loops,
    )
