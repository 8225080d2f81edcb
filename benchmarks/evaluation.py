"""Metrics with intervals over users, beside the plain way: weighing every row anew in every round.

.venv/bin/python benchmarks/evaluation.py --rows 1000000 --users 100000 --rounds 10000
"""

import argparse
import resource
import time

import numpy as np

from reczero.evaluation import metrics

PLAIN_ROUNDS = 200  # of the plain way, whose rounds all take as long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("users", 100_000), ("rounds", 10_000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    users = rng.integers(0, asked.users, asked.rows)
    truth = rng.integers(1, 6, asked.rows).astype(float)
    given = np.clip(truth + rng.normal(0, 1, asked.rows), 1, 5)
    ours, plain = [], []
    for _ in range(asked.repeats):
        began = time.perf_counter()
        score = metrics.score(truth, {"model": given}, users, 4.0, rounds=asked.rounds)["model"]
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        error = np.abs(given - truth)
        for _ in range(PLAIN_ROUNDS):
            times = np.bincount(rng.integers(asked.users, size=asked.users), minlength=asked.users)[users]
            _ = (times * error).sum() / times.sum(), np.sqrt((times * error**2).sum() / times.sum())
        plain.append((time.perf_counter() - began) * asked.rounds / PLAIN_ROUNDS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{asked.rows:,} predictions of {asked.users:,} users, {asked.rounds:,} rounds; median of {asked.repeats}")
    print(f"MAE {score.mae.value:.4f} ({score.mae.low:.4f} to {score.mae.high:.4f}), peak memory {memory:.2f} GiB")
    print(f"ours, all six figures   {np.median(ours):8.1f} s  ({min(ours):.1f} to {max(ours):.1f})")
    print(f"plain, MAE and RMSE     {np.median(plain):8.1f} s  (from {PLAIN_ROUNDS} rounds)")
    print(f"plain / ours            {np.median(plain) / np.median(ours):8.1f}")


if __name__ == "__main__":
    main()
