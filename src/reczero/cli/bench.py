"""`reczero bench`: what is fast, measured on this machine against what is usual."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.\n\nExample: reczero bench grpo")

# (prompt tokens, group size, with stock TRL too, which takes up to ten minutes a step)
SWEEP = (
    *((length, 8, length <= 1200) for length in (200, 400, 800, 1200, 2000, 3000)),
    *((length, size, False) for size in (4, 16) for length in (200, 1200, 3000)),
)

TOLERANCE = 0.15  # of a step's time and memory, predicted against measured


@app.callback()
def _() -> None:
    pass


@app.command()
def grpo(
    model: Annotated[str, typer.Option(help="A hub name, a local folder, or smollm2-135m.")] = "smollm2-135m",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-P", min=64, help="Tokens of a prompt.")] = 400,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", "-R", min=2, help="Tokens of an answer.")] = 120,
    group_size: Annotated[int, typer.Option("--group-size", "-G", min=2, help="Answers to a prompt.")] = 8,
    groups: Annotated[int, typer.Option(min=1, help="Prompts a step.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Steps measured of each.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Measure many prompt lengths and group sizes, once each, and plot them (an hour)."
        ),
    ] = False,
    plot: Annotated[Path, typer.Option(help="Where --sweep draws its picture (svg, png, pdf).")] = Path("sweep.svg"),
) -> None:
    """Time a GRPO step of stock TRL and of ours in turn (fp32, all weights trained, no gradient checkpointing).

    Example: reczero bench grpo --json grpo.json
    """
    from reczero.bench.grpo import Shape, compare
    from reczero.files import writing

    for path in (json_file, plot if sweep else None):
        if path is not None:
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
    say = typer.echo
    result: dict[str, Any]
    if sweep:
        points = []
        for i, (length, size, stock) in enumerate(SWEEP, 1):
            shape = Shape(length, answer_tokens, size, groups)
            say(f"{i}/{len(SWEEP)} prompt {length}, group size {size}" + (", stock TRL too" if stock else ""))
            # With longer prompts stock TRL's activations of a whole group would not fit in 24 GiB.
            rows = size // 2 if stock and length > 400 else None
            points.append(compare(shape, model, 1, say, stock, rows))
            if json_file:
                json_file.write_text(json.dumps({"sweep": points}, indent=2) + "\n", "utf-8")
        _draw(points, plot)
        _print_sweep(points)
        say(f"plot: {plot}")
        return
    result = compare(Shape(prompt_tokens, answer_tokens, group_size, groups), model, repeats, say)
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    _print(result)


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="A hub name, a local folder, or smollm2-135m.")] = "smollm2-135m",
    rounds: Annotated[int, typer.Option(min=1, help="Steps measured of each shape; medians count.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="More than one are timed by the wall's clock.")] = 1,
    fit_only: Annotated[
        bool, typer.Option("--fit-only", help="Measure the profile, and try it at no other shape.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the profile goes.", show_default="the cache, for `reczero plan --gpu cpu`"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Fit what `reczero plan` assumes at one shape of a GRPO step, and try the plan at three others.

    Exit code 1 where a step's time or memory is off by more than 15 %. Ten minutes for three rounds.

    Example: reczero bench plan --out machine.json
    """
    from reczero.bench.plan import TRIED, check
    from reczero.files import atomic_file, writing
    from reczero.scaleout.machines import own_profile

    target = out or own_profile()
    for path in (json_file, target):
        if path is not None:
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
    machine, result = check(model, rounds, threads, typer.echo, tried=() if fit_only else TRIED)
    with atomic_file(target) as file:
        file.write_text(machine.model_dump_json(indent=2) + "\n", "utf-8")
    if json_file:
        json_file.write_text(json.dumps(result | {"machine": machine.model_dump()}, indent=2) + "\n", "utf-8")
    _print_checked(result)
    typer.echo(
        f"fitted: {machine.update_share * machine.flops / 1e9:.0f} GFLOP/s in forward and backward passes "
        f"({machine.update_share:.0%} of the fastest matrix product), {machine.bandwidth / 1e9:.0f} GB/s in the "
        f"optimizer, {1000 * machine.step_seconds:.1f} ms a decoding step beside both, "
        f"{machine.fixed / 2**30:.2f} GiB beside what is counted\nprofile: {target}"
    )
    if (worst := result["worst"]) > TOLERANCE:
        typer.echo(f"error: off by {worst:.0%}, more than {TOLERANCE:.0%}.", err=True)
        raise typer.Exit(1)


def _print_checked(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    clock = "seconds of the processor, one thread" if result["threads"] == 1 else f"{result['threads']} threads"
    table = Table(title=f"{result['model']}: predicted / measured ({clock})", title_justify="left")
    for name in ("shape", "rollout, s", "update, s", "step, s", "memory, GiB", "step", "memory"):
        table.add_column(name, justify="left" if name == "shape" else "right")
    for row in result["rows"]:
        p, r, g, n = (row["shape"][key] for key in ("prompt", "answer", "group_size", "groups"))
        expected, found = row["predicted"], row["measured"]
        table.add_row(
            f"P {p}, R {r}, G {g}, {n} groups" + " (fitted)" * row["fitted"],
            *(f"{expected[part]:.1f} / {found[part]:.1f}" for part in ("rollout", "update", "step")),
            f"{expected['memory'] / 2**30:.2f} / {found['memory'] / 2**30:.2f}",
            *(f"{row['ratio'][part] - 1:+.0%}" for part in ("step", "memory")),
        )  # fmt: skip
    Console(width=110).print(table)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shape = result["shape"]
    title = (
        f"{result['model']}: {shape['groups']} groups of {shape['group_size']} answers of {shape['answer']} tokens "
        f"to prompts of {shape['prompt']}; median of {result['repeats']} (lowest to highest)"
    )
    table = Table(title=title, title_justify="left")
    for name in ("", "stock TRL", "ours", "stock / ours"):
        table.add_column(name, justify="left" if not name else "right")
    for part in ("rollout", "update", "step"):
        table.add_row(
            f"{part}, seconds",
            *(_spread(result[who]["seconds"][part], ".1f") for who in ("stock", "ours")),
            _spread(result[f"{part}_ratio"], ".2f"),
        )
    table.add_row("answer tokens a second, whole step",
                  *(f"{result[who]['step_tokens_per_second']:.0f}" for who in ("stock", "ours")))  # fmt: skip
    table.add_row("peak memory of the process, GiB",
                  *(f"{result[who]['peak_memory_gib']:.1f}" for who in ("stock", "ours")),
                  f"{1 / result['memory_ratio']['median']:.2f}")  # fmt: skip
    Console().print(table)
    share = result["update_peak_share"]
    typer.echo(
        f"our update needs {result['update_gflop']:,.0f} GFLOP and reaches {share['median']:.0%} "
        f"({share['min']:.0%} to {share['max']:.0%}) of the fastest matrix product here, "
        f"{result['gemm_peak_gflops']:.0f} GFLOP/s\n"
        f"tokens through the model, stock / ours: {result['arithmetic_limit']:.2f}"
    )


def _spread(values: dict[str, float], how: str) -> str:
    return f"{values['median']:{how}} ({values['min']:{how}} to {values['max']:{how}})"


def _print_sweep(points: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="one measured step each", title_justify="left")
    for name in (
        "prompt",
        "group size",
        "ours, s",
        "peak share",
        "stock, s",
        "step ratio",
        "update ratio",
        "tokens ratio",
    ):
        table.add_column(name, justify="right")
    for point in points:
        stock = point.get("stock")
        table.add_row(
            str(point["shape"]["prompt"]), str(point["shape"]["group_size"]),
            f"{point['ours']['seconds']['step']['median']:.1f}", f"{point['update_peak_share']['median']:.0%}",
            f"{stock['seconds']['step']['median']:.1f}" if stock else "",
            f"{point['step_ratio']['median']:.2f}" if stock else "",
            f"{point['update_ratio']['median']:.2f}" if stock else "", f"{point['arithmetic_limit']:.2f}",
        )  # fmt: skip
    Console().print(table)


def _draw(points: list[dict[str, Any]], path: Path) -> None:
    """Measured ratios over the prompt's length, beside the arithmetic limit of each group size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for size in sorted({point["shape"]["group_size"] for point in points}):
        own = [point for point in points if point["shape"]["group_size"] == size]
        lengths = [point["shape"]["prompt"] for point in own]
        (line,) = axis.plot(
            lengths, [point["arithmetic_limit"] for point in own], "--", label=f"G(P+R)/(P+GR), G = {size}"
        )
        measured = [point for point in own if "stock" in point]
        for part, marker in (("step", "o"), ("update", "^")):
            if measured:
                axis.plot(
                    [point["shape"]["prompt"] for point in measured],
                    [point[f"{part}_ratio"]["median"] for point in measured],
                    marker, color=line.get_color(), label=f"{part} measured, G = {size}",
                )  # fmt: skip
    axis.set(xlabel="prompt tokens P", ylabel="stock TRL's seconds / ours", ylim=(0, None), xlim=(0, None))
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)
    figure.savefig(path)
    pyplot.close(figure)
