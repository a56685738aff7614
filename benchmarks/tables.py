"""Benchmark results as Markdown tables."""

from __future__ import annotations


def _verdict(value: float, must: float, aim: float, *, smaller: bool = False) -> str:
    met = (lambda goal: value <= goal) if smaller else (lambda goal: value >= goal)
    return "aim" if met(aim) else "must" if met(must) else "missed"


def kernels_cpu_table(result: dict, shapes: dict) -> str:  # type: ignore[type-arg]
    """The goals of the CPU kernels and what was measured."""
    shows = (
        "Shows the processor time of the scan alone, compared with other implementations in the same run; it does not\n"
        "show the time of a whole training step."
    )
    lines = ["# CPU scan", "", shows, "", *(f"- {key}: {value}" for key, value in result["machine"].items())]
    lines += [f"- peer not timed: {name}: {why}" for name, why in result["missing peers"].items()]
    lines += ["", "Milliseconds of CPU time on one thread, median (minimum); ratios of medians.", ""]
    lines += [
        "| shape | scan | ours | drop-in | " + " | ".join(_peers(result)) + " |",
        "|---" * (4 + len(_peers(result))) + "|",
    ]
    for name in shapes:
        for what in ("forward", "forward_backward"):
            times = result["shapes"][name][what]
            cells = [f"{times['ours'][0] * 1e3:.2f} ({times['ours'][1] * 1e3:.2f})"]
            for other in ("drop-in", *_peers(result)):
                why = result["shapes"][name]["wrong"].get(other, "-")
                found = times.get(other)
                cells.append(f"{found[0] * 1e3:.1f} = {found[0] / times['ours'][0]:.1f}x" if found else why)
            lines.append(f"| {name} | {what.replace('_', ' + ')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *goals(result, shapes)])


def _peers(result: dict) -> list[str]:  # type: ignore[type-arg]
    known = ("mamba_ssm ref", "VMamba easy", "mamba.py pscan")
    return [name for name in known if name not in result["missing peers"]]


def goals(result: dict, shapes: dict) -> list[str]:  # type: ignore[type-arg]
    """One row per goal."""
    rows = ["| goal | must | aim | measured | met |", "|---|---|---|---|---|"]

    def add(goal: str, must: float, aim: float, value: float, text: str = "", smaller: bool = False) -> None:
        sign = "<=" if smaller else ">="
        rows.append(
            f"| {goal} | {sign} {must:g} | {sign} {aim:g} | {text or f'{value:.2f}'} | "
            f"{_verdict(value, must, aim, smaller=smaller)} |"
        )

    def per_shape(peer: str, names: list[str]) -> list[float]:
        found = (result["shapes"][name]["forward_backward"] for name in names)
        return [times[peer][0] / times["ours"][0] for times in found if peer in times]

    big = ["K4 D768 L256 N16", "K4 D192 L4096 N16", "K1 D96 L32768 N16"]
    if values := per_shape("mamba.py pscan", big):
        add("C1 times mamba.py pscan, fwd+bwd", 30, 60, min(values), " / ".join(f"{v:.0f}" for v in values))
    times = result.get("compiled", {})
    if "ours" in times:
        add("C2 times torch.compile of a chunked scan, fwd+bwd", 12, 20, times["compiled easy"][0] / times["ours"][0])
    if values := per_shape("mamba_ssm ref", ["K4 D64 L256 N16"]):
        add("C3 times selective_scan_ref, fwd+bwd", 300, 300, values[0])
    floor = result["floor"]["scan"]
    shares = []
    for name in big:
        K, D, L, N = shapes[name]
        found = result["shapes"][name]
        f, kept = (found["forward"][which][0] for which in ("ours", "ours, for training"))
        work, back = K * D * L * N, found["forward_backward"]["ours"][0] - kept
        shares.append((work / f / floor, work / back / (floor / 2), back / kept, (back + kept - f) / f))
    add(
        f"C4 fraction of the arithmetic floor ({floor / 1e9:.2f}e9/s), forward",
        0.45,
        0.65,
        min(s[0] for s in shares),
        " / ".join(f"{s[0]:.2f}" for s in shares),
    )
    add(
        "C4 fraction of half the floor, backward",
        0.40,
        0.60,
        min(s[1] for s in shares),
        " / ".join(f"{s[1]:.2f}" for s in shares),
    )
    measured = " / ".join(f"{s[2]:.2f}" for s in shares)
    add("C5 backward / forward of training", 2.3, 2.0, max(s[2] for s in shares), measured, True)
    strict = " / ".join(f"{s[3]:.2f}" for s in shares)
    rows.append(f"| C5 against a forward that keeps no states | - | - | {strict} | - |")
    sets = result["instruction sets"]
    if "avx512" in sets and "avx2" in sets:
        add("C6 AVX2 / AVX-512 time", 1.8, 1.6, sets["avx2"][0] / sets["avx512"][0], smaller=True)
        rows.append(f"| C6 any processor / AVX-512 time | - | - | {sets['base'][0] / sets['avx512'][0]:.2f} | - |")
    values = per_shape("drop-in", big)
    add("C7 drop-in (B, KD, L) / native, fwd+bwd", 2.5, 1.6, max(values), " / ".join(f"{v:.2f}" for v in values), True)
    scaling = [times["1"][0] / times["2"][0] for times in result["threads"].values()]
    best = [times["1"][1] / times["2"][1] for times in result["threads"].values()]
    text = " / ".join(f"{v:.2f}" for v in scaling) + " (of minima " + " / ".join(f"{v:.2f}" for v in best) + ")"
    add("C8 two threads against one, wall", 1.6, 1.8, min(best), text)
    memory = list(result["extra memory"].values())
    add("C11 extra memory / inputs", 1.0, 0.3, max(memory), " / ".join(f"{v:.2f}" for v in memory), True)
    add("C12 error of y, max norm", 1e-6, 3e-7, (e := max(v[0] for v in result["errors"].values())), f"{e:.1e}", True)
    add(
        "C12 error of gradients, max norm",
        5e-6,
        1e-6,
        (e := max(v[1] for v in result["errors"].values())),
        f"{e:.1e}",
        True,
    )
    equal = all(result["bit equal"].values())
    answer = "yes | aim" if equal else "no | missed"
    rows.append(f"| C13 gradients bit-equal, repeated and for 1, 2, 5 threads | yes | yes | {answer} |")
    return rows
