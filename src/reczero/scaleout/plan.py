"""What a recipe will need: who does what, whether it fits, how long a run takes, what it costs, and what would fit.

The formulas are in `cost.py`, the models in `shapes.py`, the machines in `machines.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from reczero.errors import UserError
from reczero.recipes import Recipe

from .cost import (
    Engine,
    EngineName,
    Memory,
    Work,
    collective_seconds,
    engine_of,
    memory_of,
    rollout_seconds,
    update_flops,
    update_seconds,
)
from .machines import GB, Machine
from .shapes import ModelShape


@dataclass(frozen=True)
class Layout:
    """Who does what: units (groups or rows) on the busiest GPU; prompts and answers of one rollout, on `tp` GPUs."""

    units: int
    idle: int
    micro: int
    prompts: int
    answers: int
    tp: int


def tensor_parallel(shape: ModelShape, width: int, room: float, most: int) -> int:
    """Over how many GPUs, up to `most`, vLLM divides a model: the least power of two that leaves it half of its `room`
    (bytes on each) for keys and values. width: bytes a weight."""
    tp = 1
    while 2 * shape.parameters * width / tp > room and 2 * tp <= most:
        tp *= 2
    return tp


def layout_of(shape: ModelShape, work: Work, machine: Machine, engine: Engine, gpus: int, per_node: int) -> Layout:
    """Groups (rows) are dealt out evenly; vLLM divides a model by the least power of two that leaves half of its memory
    to keys and values (verl), and not at all beside TRL."""
    units = work.groups if engine.shared else work.groups * work.group_size
    most = math.ceil(units / gpus)
    micro = min(most, max(1, work.tokens_per_batch // work.tokens(engine.shared)))
    tp = 1
    if engine.vllm and engine.name == "verl":
        tp = tensor_parallel(shape, engine.compute, engine.vllm * machine.memory, min(gpus, per_node))
    replicas = max(1, gpus // tp)
    if engine.shared:
        prompts = math.ceil(work.groups / replicas)
        answers = prompts * work.group_size
    else:
        answers = math.ceil(work.groups * work.group_size / replicas)
        prompts = math.ceil(answers / work.group_size)
    return Layout(most, max(0, gpus - units), micro, prompts, answers, tp)


@dataclass(frozen=True)
class Fit:
    fits: bool
    why: str  # what does not fit, "" where all does
    most_tokens: int  # of a micro-batch that would fit; 0: not even a group (row)
    most_answers: int  # decoded together


def fit_of(
    shape: ModelShape, work: Work, machine: Machine, engine: Engine, layout: Layout, memory: Memory
) -> Fit:  # fmt: skip
    """Whether it fits, and the largest batches that would."""

    def of(micro: int) -> Memory:
        return memory_of(
            shape, work, machine, engine, max(layout.units, micro), layout.prompts, layout.answers, micro, layout.tp
        )

    low, high = 0, 1
    while of(high).update <= machine.memory and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:  # memory grows with the micro-batch
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle).update <= machine.memory else (low, middle)
    width, per = shape.kv_bytes(engine.compute) / layout.tp, layout.prompts / max(1, layout.answers)
    room = memory.kv if engine.vllm else max(0.0, machine.memory - (memory.rollout - memory.kv))
    growth = 1.0 if engine.vllm else 1.5
    answers = int(room / (width * (growth * work.answer + per * work.prompt)))
    why = []
    if memory.update > machine.memory:
        why.append(f"the update needs {memory.update / GB:.0f} GB of {machine.memory / GB:.0f}")
    if memory.rollout > machine.memory:
        why.append(f"the rollout needs {memory.rollout / GB:.0f} GB of {machine.memory / GB:.0f}")
    if engine.vllm and memory.rollout_copy + width * (work.prompt + work.answer) > engine.vllm * machine.memory:
        why.append(
            f"vLLM's weights need {memory.rollout_copy / GB:.0f} GB of its {engine.vllm * machine.memory / GB:.0f}"
        )
    if memory.update <= machine.memory:  # one micro-batch of all needs no room for the gradients of earlier ones
        low = max(low, layout.micro)
    return Fit(not why, "; ".join(why), low * work.tokens(engine.shared), answers)


def plan_step(
    shape: ModelShape, work: Work, machine: Machine, engine: Engine, gpus: int, per_node: int = 8
) -> dict[str, Any]:
    """One step of GRPO: who does what, memory (bytes), whether it fits, arithmetic (operations), seconds."""
    layout = layout_of(shape, work, machine, engine, gpus, per_node)
    memory = memory_of(
        shape, work, machine, engine, layout.units, layout.prompts, layout.answers, layout.micro, layout.tp
    )
    fit = fit_of(shape, work, machine, engine, layout, memory)
    rollout = rollout_seconds(
        shape, machine, layout.prompts, layout.answers, work.prompt, work.answer, engine.compute, layout.tp,
        memory.kv if engine.vllm else None, once=not engine.vllm,
    )  # fmt: skip
    if engine.vllm:  # the trained weights are handed to vLLM after each step
        rollout["sync"] = collective_seconds(shape.parameters * engine.compute, engine.shards, per_node, machine)
        rollout["rollout"] += rollout["sync"]
    update = update_seconds(shape, work, machine, engine, layout.units, layout.micro, gpus, per_node)
    kept = engine.vllm == 0
    stock = work.group_size * update_flops(shape, work, False, engine.scoring)
    shared = update_flops(shape, work, True, engine.scoring, kept)
    rows = layout.units * (work.group_size if engine.shared else 1)
    rate = machine.flops * machine.update_share
    return {
        "layout": asdict(layout),
        "memory": asdict(memory) | {"peak": memory.peak},
        "fit": asdict(fit),
        "flops": {"stock": work.groups * stock, "shared": work.groups * shared, "ratio": stock / shared},
        "seconds": rollout | update | {
            "step": rollout["rollout"] + update["update"],
            "update_stock": rows / work.group_size * stock / rate,
            "update_shared": rows / work.group_size * shared / rate,
        },
    }  # fmt: skip


def ways_out(
    shape: ModelShape, work: Work, machine: Machine, recipe: Recipe, name: EngineName, gpus: int, per_node: int
) -> list[str]:
    """What would fit where this does not: each change alone, in the order of how little it changes."""
    tried: list[tuple[str, Work, int, str | None]] = []
    if not work.checkpointing:
        tried.append(("model.gradient_checkpointing=true", replace(work, checkpointing=True), gpus, None))
    if name == "local" and gpus > 1:
        tried += [(f"--preset {preset}", work, gpus, preset) for preset in ("zero2", "fsdp")]
    if not work.rank:
        tried.append(("LoRA (model.lora.rank=32)", replace(work, rank=32, train_layers=None), gpus, None))
    if name == "verl":
        tried += [(f"{more} GPUs", work, more, None) for more in (gpus * 2**i for i in range(1, 7))]
    found: list[str] = []
    for what, changed, count, preset in tried:
        if "GPUs" in what and any("GPUs" in way for way in found):
            continue
        if plan_step(shape, changed, machine, engine_of(name, recipe, count, preset), count, per_node)["fit"]["fits"]:
            found.append(what)
    return found


def make_plan(
    recipe: Recipe, shape: ModelShape, machine: Machine, gpus: int, prompt: int, answer: int, *, engine: EngineName,
    per_node: int = 8, preset: str | None = None, examples: int = 2400, price: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The whole run of a recipe on `gpus` GPUs, as plain numbers: bytes, operations, seconds; money as `price`.

    prompt, answer: average tokens. examples: training rows, where the recipe gives no number of steps. price: of one
    GPU for an hour. Raises UserError.
    """
    mistakes = [f"{what} {value:g}: must be above 0" for what, value in (
        ("--gpus", gpus), ("--gpus-per-node", per_node), ("--prompt-tokens", prompt), ("--answer-tokens", answer),
    ) if value < 1]  # fmt: skip
    mistakes += [f"{what} {value:g}: more than 10,000,000" for what, value in (
        ("--prompt-tokens", prompt), ("--answer-tokens", answer)) if value > 10**7]  # fmt: skip
    if price is not None and not 0 <= price < math.inf:
        mistakes.append(f"--price {price:g}: must be a number from 0 on")
    if preset and engine == "verl":
        mistakes.append(f"--preset {preset}: is for --engine local; verl has FSDP")
    if not mistakes and gpus > per_node and gpus % per_node:
        mistakes.append(f"--gpus {gpus}: more than a node's {per_node} must be whole nodes (--gpus-per-node)")
    if mistakes:
        raise UserError("; ".join(mistakes) + ".")
    chosen = engine_of(engine, recipe, gpus, preset)
    work = Work.of(recipe, prompt, answer)
    step = plan_step(shape, work, machine, chosen, gpus, per_node)
    run = _whole_run(recipe, shape, work, machine, chosen, step, gpus, per_node, examples)
    gpu_hours = run["hours"] * gpus
    return {
        "gpus": gpus,
        "engine": asdict(chosen),
        "work": asdict(work),
        "step": step,
        "run": run | {"gpu_hours": gpu_hours, "cost": None if price is None else price * gpu_hours},
        "ways_out": [] if step["fit"]["fits"] else ways_out(shape, work, machine, recipe, engine, gpus, per_node),
        "groups_for_all": gpus if chosen.shared else math.ceil(gpus / work.group_size),
    }


def _whole_run(
    recipe: Recipe, shape: ModelShape, work: Work, machine: Machine, engine: Engine, step: Mapping[str, Any],
    gpus: int, per_node: int, examples: int,
) -> dict[str, Any]:  # fmt: skip
    """Seconds of every stage, validations and test predictions apart."""
    t, e, s = recipe.training, recipe.evaluation, recipe.sft
    tp = step["layout"]["tp"]
    replicas = max(1, gpus // tp)

    def predicting(rows: int) -> float:
        """Greedy answers to `rows` prompts, one each, at most `evaluation.batch_size` together."""
        mine = math.ceil(rows / replicas)
        size = min(mine, e.batch_size)
        one = rollout_seconds(shape, machine, size, size, work.prompt, work.answer, engine.compute, tp)
        return mine / size * one["rollout"]

    stages: dict[str, dict[str, float]] = {}
    rounds = 1 + recipe.iterate.rounds if recipe.method == "iterate" else 1
    if recipe.method != "reczero":
        traces = recipe.teacher.examples
        steps = s.steps or math.ceil(traces * s.epochs / s.traces_per_step)
        row = replace(work, group_size=1, groups=s.traces_per_step)
        most = math.ceil(s.traces_per_step / gpus)
        micro = min(most, s.traces_per_batch)
        alone = replace(engine, scoring=0)
        one = update_seconds(shape, row, machine, alone, most, micro, gpus, per_node, shared=False)["update"]
        checks = steps // s.validation_steps + 1
        stages["sft"] = _stage(steps, one, checks, predicting(e.validation_examples), s.minutes, rounds)
    if recipe.method != "sft":
        steps = t.steps or math.ceil(examples * t.epochs / t.groups_per_step)
        checks = steps // e.validation_steps + (1 if recipe.method == "reczero" else 2)
        stages["grpo"] = _stage(
            steps, step["seconds"]["step"], checks, predicting(e.validation_examples), t.minutes, rounds
        )
    if e.test_examples:  # the untrained policy, and every stage's
        times = 1 + len(stages) * rounds
        stages["test"] = {"steps": times, "seconds": times * predicting(e.test_examples), "validation": 0.0}
    total = sum(stage["seconds"] + stage["validation"] for stage in stages.values())
    return {"stages": stages, "hours": total / 3600}


def _stage(steps: int, one: float, checks: int, check: float, minutes: float | None, rounds: int) -> dict[str, float]:
    """minutes: the recipe's limit, which ends a stage early."""
    seconds = steps * one
    if minutes is not None and seconds > 60 * minutes:
        steps = max(1, math.ceil(60 * minutes / one))
        seconds = steps * one
    return {"steps": steps * rounds, "seconds": rounds * seconds, "validation": rounds * checks * check}
