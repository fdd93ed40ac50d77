"""Assign datasets to workers, draw a mixture in exact proportions on three ranks, and resume in mid-epoch.

Run: python examples/sampling.py            prints
     python examples/sampling.py loads.svg  prints, and draws the picture of loads that the documentation shows
"""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from moteur.sampling import EpochOrder, Sampler, WeightedOrder, assign, paper_mixture

WORKERS, DATASETS = 8, 60
WIDTH, HEIGHT, GAP = 300, 200, 60


def sizes() -> dict[str, int]:
    """Sixty datasets of very different sizes, in thousands of frames."""
    rng = random.Random(7)  # noqa: S311 - an example, not a secret
    return {f"set-{index:02d}": int(rng.lognormvariate(4, 1.1)) + 1 for index in range(DATASETS)}


def picture(panels: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> str:
    """Stacked bars of what each worker holds, as SVG."""
    top = max(sum(bar) for _, bars in panels for bar in bars)
    mean = sum(map(sum, panels[0][1])) / WORKERS
    unit = HEIGHT / top
    width, height = len(panels) * (WIDTH + GAP) + GAP, HEIGHT + 90
    shades = ("#4477aa", "#88aacc")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    parts = [f'{head} font-size="13">', f'<rect width="{width}" height="{height}" fill="white"/>']
    for number, (title, bars) in enumerate(panels):
        left, floor = GAP + number * (WIDTH + GAP), HEIGHT + 45
        heaviest = max(map(sum, bars)) / mean
        parts.append(f'<text x="{left}" y="22">{title}: heaviest {heaviest:.2f} of the mean</text>')
        step = WIDTH / len(bars)
        for worker, bar in enumerate(bars):
            y = float(floor)
            for place, size in enumerate(bar):
                y -= size * unit
                parts.append(
                    f'<rect x="{left + worker * step + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" '
                    f'height="{size * unit:.1f}" fill="{shades[place % 2]}" stroke="white" stroke-width="0.5"/>'
                )
            parts.append(
                f'<text x="{left + (worker + 0.5) * step:.1f}" y="{floor + 17}" text-anchor="middle">{worker}</text>'
            )
        y = floor - mean * unit
        parts.append(f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#cc3311" stroke-dasharray="5 3"/>')
        parts.append(
            f'<text x="{left + WIDTH / 2}" y="{floor + 36}" text-anchor="middle">worker (dashed: mean load)</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main(target: str | None) -> None:
    """Print the three parts; write the picture if a file is named."""
    datasets = sizes()
    assignment = assign(datasets, WORKERS)
    print(assignment, end="\n\n")
    if target:
        in_turn = [list(datasets.values())[worker::WORKERS] for worker in range(WORKERS)]
        longest_first = [[datasets[replica.dataset] for replica in held] for held in assignment.replicas]
        Path(target).write_text(picture([("in turn", in_turn), ("longest first", longest_first)]))

    corpora = paper_mixture()
    frames, weights = {c.name: c.frames for c in corpora}, {c.name: c.weight for c in corpora}
    counts: Counter[str] = Counter()
    for rank in range(3):
        order = WeightedOrder(frames, weights, rank=rank, ranks=3)
        print(f"rank {rank} opens", {name: round(float(p), 3) for name, p in order.probabilities.items()})
        counts.update(name for name, _ in islice(Sampler(order), 100_000))
    for name, weight in weights.items():
        print(f"{name:18s} wanted {weight:.3f}, drawn by all ranks together {counts[name] / 300_000:.4f}")

    epoch = Sampler(EpochOrder({"a": 6, "b": 4}, seed=3))
    first = list(islice(epoch, 4))
    resumed = Sampler(EpochOrder({"a": 6, "b": 4}, seed=3))
    resumed.load_state_dict(epoch.state_dict())
    print("\nan interrupted epoch:", first, "\nand resumed:", list(resumed))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
