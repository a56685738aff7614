"""Golden values of Mamba-3's scan, derived in two ways that share no code with each other or with the kernels.

`python tests/kernels/mamba3_golden.py` writes tests/data/kernels/mamba3.safetensors after both agree to 1e-12.

1. The recurrence of the paper's complex state, number by number in numpy: each pair of real components is one complex
   number that is multiplied by exp(a - i theta) per step.
2. No recurrence: y = M x with the matrix M of the whole sequence, whose entry (t, s) is the integral of the input's
   trapezoid: the share that s has as the end of its own step and as the start of the next, decayed and turned from
   there to t in one exponential each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parents[1] / "data" / "kernels" / "mamba3.safetensors"
CASES = {
    "one input": (2, 9, 2, 1, 3, 4, 2),
    "half of the state turns": (1, 12, 1, 1, 2, 8, 2),
    "several inputs": (2, 7, 2, 3, 2, 6, 3),
    "odd state": (1, 5, 1, 2, 1, 5, 1),
}
"""Name -> batch, L, heads, ranks, p, n, m."""


def inputs(name: str) -> dict[str, np.ndarray]:
    """Inputs of a case, as the model makes them."""
    batch, length, heads, ranks, p, n, m = CASES[name]
    random = np.random.default_rng(len(name))

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape)

    dt = np.log1p(np.exp(normal(batch, length, heads)))
    return {
        "x": normal(batch, length, heads, ranks, p),
        "B": normal(batch, length, heads, ranks, n),
        "C": normal(batch, length, heads, ranks, n),
        "dt": dt,
        "decay": -dt * np.abs(normal(batch, length, heads)),
        "mix": 1 / (1 + np.exp(-normal(batch, length, heads))),
        "turn": np.pi * np.tanh(normal(batch, length, heads, m)) * dt[..., None],
        "D": normal(heads),
    }


def as_complex(value: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The first 2 m numbers of the last axis as m complex ones, and the others."""
    return value[..., 0 : 2 * m : 2] + 1j * value[..., 1 : 2 * m : 2], value[..., 2 * m :]


def by_recurrence(v: dict[str, np.ndarray]) -> np.ndarray:
    """The first way."""
    batch, length, heads, ranks, p = v["x"].shape
    m = v["turn"].shape[-1]
    y = np.zeros_like(v["x"])
    for b in range(batch):
        for h in range(heads):
            turning = np.zeros((p, m), complex)
            resting = np.zeros((p, v["B"].shape[-1] - 2 * m))
            for t in range(length):
                dt, mix = v["dt"][b, t, h], v["mix"][b, t, h]
                alpha = np.exp(v["decay"][b, t, h])
                phase = np.exp(-1j * v["turn"][b, t, h])
                turning, resting = turning * alpha * phase, resting * alpha
                for r in range(ranks):
                    if t:
                        B_turning, B_resting = as_complex(v["B"][b, t - 1, h, r], m)
                        share = alpha * (1 - mix) * dt
                        turning += share * np.outer(v["x"][b, t - 1, h, r], B_turning * phase)
                        resting += share * np.outer(v["x"][b, t - 1, h, r], B_resting)
                    B_turning, B_resting = as_complex(v["B"][b, t, h, r], m)
                    turning += mix * dt * np.outer(v["x"][b, t, h, r], B_turning)
                    resting += mix * dt * np.outer(v["x"][b, t, h, r], B_resting)
                for r in range(ranks):
                    C_turning, C_resting = as_complex(v["C"][b, t, h, r], m)
                    y[b, t, h, r] = (turning @ C_turning.conj()).real + resting @ C_resting
    return y + v["D"][None, None, :, None, None] * v["x"]


def by_matrix(v: dict[str, np.ndarray]) -> np.ndarray:
    """The second way."""
    length, m = v["x"].shape[1], v["turn"].shape[-1]
    decayed = np.cumsum(v["decay"], 1)
    angle = np.cumsum(v["turn"], 1)
    C_turning, C_resting = as_complex(v["C"], m)
    B_turning, B_resting = as_complex(v["B"], m)
    y = v["D"][None, None, :, None, None] * v["x"]
    for t in range(length):
        for s in range(t + 1):
            far = np.exp(decayed[:, t] - decayed[:, s])  # (batch, heads)
            weight = v["mix"][:, s] * v["dt"][:, s] * far
            if s < t:  # the start of the next step, which decays over all of it
                weight = weight + (1 - v["mix"][:, s + 1]) * v["dt"][:, s + 1] * far
            phase = np.exp(1j * (angle[:, t] - angle[:, s]))[:, :, None, None]
            pairs = np.einsum("bhim,bhjm->bhij", C_turning[:, t].conj(), B_turning[:, s] / phase[:, :, 0]).real
            pairs = pairs + np.einsum("bhin,bhjn->bhij", C_resting[:, t], B_resting[:, s])
            y[:, t] += weight[:, :, None, None] * np.einsum("bhij,bhjp->bhip", pairs, v["x"][:, s])
    return y


if __name__ == "__main__":
    from safetensors.numpy import save_file

    found = {}
    for name in CASES:
        values = inputs(name)
        one, other = by_recurrence(values), by_matrix(values)
        assert np.abs(one - other).max() < 1e-12 * np.abs(one).max(), name
        found |= {f"{name}/{key}": np.ascontiguousarray(value) for key, value in (values | {"y": one}).items()}
    save_file(found, FILE)
