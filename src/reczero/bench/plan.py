"""Holds `reczero plan` against this machine: what it assumes is fitted at one shape of a step, and tried at others.

From the steps measured at that one shape come four numbers: what forward and backward passes reach of the processor's
peak, how fast the optimizer goes through memory, what a decoding step takes beside arithmetic and reading, and the
memory that is taken beside what the plan counts (libraries, fragments). All else is the plan's own: bytes of a token,
operations of a step.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from reczero.errors import UserError
from reczero.scaleout.cost import Engine, Work, memory_of, rollout_seconds, update_flops, update_seconds
from reczero.scaleout.machines import Machine
from reczero.scaleout.shapes import ModelShape, shape_of

from .grpo import GIB, Shape, worker

# A step of two groups each, so that gradients of the first lie beside the activations of the second. The others have
# four times the prompt, three times the answers, and three times the answers' length.
FITTED = Shape(200, 48, 8, 2)
TRIED = (Shape(800, 48, 8, 2), Shape(100, 48, 24, 2), Shape(200, 160, 6, 2))
PARTS = ("rollout", "update", "step", "memory")
# As the benchmark runs it: fp32, whole weights, rollouts with them, no KL term.
ENGINE = Engine("local", True, 4, 4, 8, 4, 1, 1, False, 0.0, False, 0)
Say = Callable[[str], None]


def work_of(shape: Shape) -> Work:
    """A group at a time, everything learns, nothing is checkpointed: as `reczero.bench.grpo` measures."""
    p, r, g = shape.prompt, shape.answer, shape.group_size
    return Work(shape.groups, g, p, r, tokens_per_batch=p + g * r)


def predict(sizes: ModelShape, shape: Shape, machine: Machine) -> dict[str, float]:
    """Seconds of rollout, update and step, and bytes of memory at most."""
    work = work_of(shape)
    answers = work.groups * work.group_size
    rollout = rollout_seconds(sizes, machine, work.groups, answers, work.prompt, work.answer, 4)
    update = update_seconds(sizes, work, machine, ENGINE, work.groups, 1, 1, 1)
    memory = memory_of(sizes, work, machine, ENGINE, work.groups, work.groups, answers, 1, 1)
    return {"rollout": rollout["rollout"], "update": update["update"],
            "step": rollout["rollout"] + update["update"], "memory": memory.peak}  # fmt: skip


def fit(sizes: ModelShape, shape: Shape, measured: dict[str, float], peak: float) -> Machine:
    """The profile of this machine, from what was measured of one shape (seconds, bytes). peak: operations a second."""
    work = work_of(shape)
    rate = work.groups * update_flops(sizes, work, True) / (measured["update"] - measured["optimizer"])
    machine = Machine(
        name="cpu", source="measured by `reczero bench plan`; link and network are not", flops=max(peak, rate),
        update_share=min(1.0, rate / peak), memory=psutil.virtual_memory().total,
        bandwidth=7 * 4 * sizes.parameters / measured["optimizer"], decode_share=1.0, step_seconds=0.0, overlap=False,
        link=1e9, network=1e9, fixed=0.0, activation_factor=1.0, packed=True, measured=True,
    )  # fmt: skip
    without = predict(sizes, shape, machine)
    return machine.model_copy(
        update={
            "step_seconds": max(0.0, (measured["rollout"] - without["rollout"]) / shape.answer),
            "fixed": max(0.0, measured["memory"] - without["memory"]),
        }
    )


def measure(shapes: Sequence[Shape], model: str, rounds: int, threads: int, say: Say) -> tuple[list[dict], float]:
    """Medians for each shape (seconds of rollout, update, optimizer, step; bytes at most), and the highest peak rate.

    Shapes take turns; each turn is a process of its own that makes one step to warm up and one that counts. One thread
    is timed by the processor's own clock, which other programs cannot lengthen much; several by the wall's.
    """
    from reczero.models import resolve_model

    place = str(resolve_model(model))
    clock = "cpu_" if threads == 1 else ""
    turns: list[list[dict[str, float]]] = [[] for _ in shapes]
    peaks = []
    with only(threads):
        for turn in range(rounds):
            for shape, seen in zip(shapes, turns, strict=True):
                with worker("ours", shape, place, 1) as one:
                    one.ask("step")
                    peaks.append(1e9 * one.ask("peak"))
                    spent = one.ask("step")
                    found = {part: spent[clock + part] for part in ("rollout", "update", "optimizer", "step")}
                    seen.append(found | {"wall": spent["step"], "memory": GIB * one.ask("memory")})
                say(
                    f"{turn + 1}/{rounds} {describe(shape)}: step {found['step']:.1f} s = rollout "
                    f"{found['rollout']:.1f} + update {found['update']:.1f}; {seen[-1]['memory'] / GIB:.2f} GiB"
                    + (f" ({spent['step']:.1f} s by the wall's clock)" if clock else "")
                )
    return [{key: statistics.median(turn[key] for turn in seen) for key in seen[0]} for seen in turns], max(peaks)


@contextmanager
def only(threads: int) -> Iterator[None]:
    """Processes that are started inside use so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def describe(shape: Shape) -> str:
    return f"P {shape.prompt}, R {shape.answer}, G {shape.group_size}, {shape.groups} groups"


def check(
    model: str, rounds: int, threads: int, say: Say, fitted: Shape = FITTED, tried: Sequence[Shape] = TRIED
) -> tuple[Machine, dict[str, Any]]:
    """The fitted profile, and predicted beside measured for every shape. With nothing `tried`, the fit alone."""
    sizes = shape_of(model)
    if fitted.groups < 2:
        raise UserError("bench plan: fit at two groups or more.")
    shapes = [fitted, *tried]
    measured, peak = measure(shapes, model, rounds, threads, say)
    machine = fit(sizes, fitted, measured[0], peak)
    rows: list[dict[str, Any]] = []
    for shape, found in zip(shapes, measured, strict=True):
        expected = predict(sizes, shape, machine)
        rows.append({
            "shape": vars(shape).copy(), "fitted": shape is fitted, "measured": found, "predicted": expected,
            "ratio": {part: expected[part] / found[part] for part in PARTS},
        })  # fmt: skip
    off = [abs(row["ratio"][part] - 1) for row in rows[1:] for part in ("step", "memory")]
    return machine, {"model": model, "rounds": rounds, "threads": threads, "rows": rows, "worst": max(off, default=0.0)}
