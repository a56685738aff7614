"""The machines that plans are timed for: the rates that whole training steps reach on each."""

from dataclasses import dataclass, replace

from medmamba.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Machine:
    """Rates that training steps reach, per second."""

    name: str
    precision: str
    """What `medmamba train --precision auto` takes there."""
    macs: float
    """Operations of convolutions and matrix products at that precision."""
    depthwise_macs: float
    """Operations of depthwise and deformable convolutions."""
    updates: float
    """State updates of a scan, its backward pass included."""
    bytes: float
    """Kept bytes with everything that reads and writes them."""
    weight_bytes: float
    """Bytes of the weights' gradients, with clipping, optimiser and reordering."""
    overhead: float
    """Seconds of a layer that depend on no size."""
    source: str
    memory_gb: float | None = None
    """Of the device, in 1e9 bytes; None: not a GPU."""


def _gpu(name: str, precision: str, macs: float, memory: float, exponentials: float, gigabytes: float) -> Machine:
    """A GPU from its datasheet: operations of its matrix units, bytes and exponentials per second, and its memory.

    Operations are dense products with sums in float32. Exponentials are 16 per multiprocessor and clock.

    The fractions are assumptions until a GPU is measured: 0.3 of the matrix units, 0.6 of the memory's rate with 6
    passes over what is kept and 10 over the gradients, a depthwise multiply-accumulate moves 4 bytes for its two
    operations, and a state update with its gradients takes 3 exponentials at a third of their rate.
    """
    moved = 0.6 * memory
    return Machine(
        name,
        precision,
        *(0.3 * macs, moved / 2, exponentials / 9, moved / 6, moved / 10, 1e-4),
        source="not measured: from the datasheet with assumed fractions",
        memory_gb=gigabytes,
    )


_CPU_FP32 = Machine(
    "cpu-fp32",
    "float32",
    *(240e9, 30e9, 2.4e9, 1.4e9, 0.6e9, 1.4e-3),
    source="measured: the same thread in float32, as on processors with AVX-512 that do not multiply bf16",
)
"""The updates are those of docs/benchmarks/kernels_cpu.md; the other rates were fitted to the steps of all families
together in docs/benchmarks/time_model.md, and rounded."""

MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        replace(
            _CPU_FP32,
            name="cpu",
            precision="bfloat16",
            macs=2 * _CPU_FP32.macs,
            source="measured: one thread of a Zen 5 server core, AVX-512 with bf16 products, torch 2.13",
        ),
        _CPU_FP32,
        _gpu("t4", "float16", 65e12, 320e9, 1.0e12, 16),
        _gpu("rtx3090", "bfloat16", 71e12, 936e9, 2.2e12, 24),
        _gpu("rtx4090", "bfloat16", 165e12, 1008e9, 5.2e12, 24),
        _gpu("rtx5090", "bfloat16", 209e12, 1792e9, 6.5e12, 32),
        _gpu("l40s", "bfloat16", 362e12, 864e9, 5.7e12, 48),
        _gpu("a100", "bfloat16", 312e12, 1555e9, 2.4e12, 40),
        _gpu("h100", "bfloat16", 989e12, 3350e9, 4.2e12, 80),
        _gpu("h200", "bfloat16", 989e12, 4800e9, 4.2e12, 141),
        _gpu("b200", "bfloat16", 2250e12, 8000e9, 4.7e12, 180),
    )
}
"""The machines that plans are timed for. The rates are constants, so that a plan depends on no measurement."""


def machine(text: str) -> Machine:
    """A machine by name, "cpu:4" with that many threads.

    Raises ConfigError with the nearest name for an unknown one.
    """
    name, colon, threads = text.partition(":")
    if name not in MACHINES:
        raise unknown_name("machine", name, list(MACHINES))
    found = MACHINES[name]
    if not colon:
        return found
    if not name.startswith("cpu") or not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"machine {text!r}: a number of threads follows a CPU only, as cpu:4.")
    count = int(threads)
    rates = ("macs", "depthwise_macs", "updates", "bytes", "weight_bytes")
    source = f"{found.source}; {count} {'thread' if count == 1 else 'threads'} at best"
    return replace(found, name=text, source=source, **{rate: getattr(found, rate) * count for rate in rates})


def machine_of_card(name: str) -> Machine | None:
    """The machine of a GPU by the name that its driver reports, "NVIDIA GeForce RTX 4090"; None: it has none here."""
    words = name.lower().replace("rtx ", "rtx").replace("-", " ").split()
    return next((found for key, found in MACHINES.items() if key in words and found.memory_gb), None)
