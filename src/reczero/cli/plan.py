"""`reczero plan`: what a recipe will need, on paper."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reczero.errors import UserError
from reczero.scaleout import Preset

if TYPE_CHECKING:
    from reczero.recipes import Recipe
    from reczero.scaleout.machines import Machine

PROMPT = 3000  # tokens, where no data are at hand: half of the 6,000 at which public code derived from the paper's cuts
ANSWER = 311  # tokens, of the paper's policy
EXAMPLES = 2400  # training rows, of the paper
TAGS = 9  # tokens of <tag> and </tag> and the line's end, by SmolLM2's tokenizer
SHOWN = 200  # rows whose prompts are counted


def plan(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe (`reczero-7b`).", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, as many as you like.")] = None,
    gpus: Annotated[str, typer.Option(help="How many; several counts make a column each: 1,8,64.")] = "8",
    gpu: Annotated[
        str, typer.Option(help="Which: h100, h200, h20, b200, a100, l40s or a10; cpu is this machine, measured.")
    ] = "h100",
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", help="GPUs that the fast link joins.")] = 8,
    model: Annotated[
        str | None, typer.Option(help="Another model: a hub name or a folder.", show_default="the recipe's")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", "-P", help="Of a prompt, on average.", show_default="counted")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", "-R", help="Of an answer, on average.", show_default="assumed")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU for an hour.", show_default=False)] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="local (this package on TRL) or verl.", show_default="verl on more than one node"),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="--engine local: of `reczero launch accelerate`.", show_default="zero2, ddp on one GPU"),
    ] = None,
    machine: Annotated[
        Path | None,
        typer.Option(help="A machine's profile, as `reczero bench plan` writes it.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Work out what a recipe will need: memory, arithmetic, time, cost. No weights are loaded, and nothing is run.

    What is assumed is printed with it; docs/scale.md has the formulas.

    Example: reczero plan reczero-7b --gpus 1,8,64 --gpu h100
    """
    from reczero.recipes import load_recipe
    from reczero.scaleout.machines import find_machine
    from reczero.scaleout.plan import make_plan
    from reczero.scaleout.shapes import shape_of

    loaded = load_recipe(recipe, [*(overrides or []), *([f"model.name={model}"] if model else [])])
    where = find_machine(gpu, machine)
    counts = _counts(gpus)
    if engine not in (None, "local", "verl"):
        raise UserError(f"--engine {engine}: must be local or verl.")
    chosen: Any = engine or ("verl" if max(counts) > gpus_per_node else "local")
    shape = shape_of(loaded.model.name)
    prompt, about_prompt = _prompt_tokens(loaded, prompt_tokens)
    answer, about_answer = _answer_tokens(loaded, answer_tokens)
    examples = loaded.data.train_examples or EXAMPLES
    plans = [
        make_plan(
            loaded, shape, where, count, prompt, answer, engine=chosen, per_node=gpus_per_node, preset=preset,
            examples=examples, price=price,
        )
        for count in counts
    ]  # fmt: skip
    notes = [about_prompt, about_answer, *_assumed(loaded, where, chosen, examples, preset)]
    if as_json:
        from dataclasses import asdict

        facts = {
            "recipe": recipe, "model": loaded.model.name, "shape": asdict(shape) | {"parameters": shape.parameters},
            "machine": where.model_dump(), "assumed": notes, "plans": plans,
        }  # fmt: skip
        typer.echo(json.dumps(facts, indent=2))
        return
    _print(loaded, shape.parameters, where, plans, prompt, answer)
    for note in notes:
        typer.echo(f"assumed: {note}")
    for line in _remarks(plans):
        typer.echo(line)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--gpus {text}: give a whole number, or several with commas between: 1,8,64.") from None
    if bad := [count for count in counts if not 1 <= count <= 100_000]:
        raise UserError(f"--gpus {bad[0]}: give 1 to 100,000.")
    return counts


def _prompt_tokens(recipe: "Recipe", given: int | None) -> tuple[int, str]:
    """Average tokens of a prompt: given, counted on rows that are at hand, or assumed; and which of these, in words."""
    if given is not None:
        return given, f"prompts of {given:,} tokens (--prompt-tokens)"
    from reczero.data import Dataset, cached

    data = recipe.data
    folder = Path(data.dataset) if data.source is None else Path()
    if not (folder / "dataset.json").is_file():
        folder = cached(data.origin, data.settings)
    tokenizer, whose = _tokenizer_at_hand(recipe.model.name)
    if tokenizer is None or not (folder / "dataset.json").is_file():
        return PROMPT, f"prompts of {PROMPT:,} tokens, for no data are at hand; say --prompt-tokens"
    from reczero.reasoning import Template

    dataset = Dataset.open(folder)
    rows = dataset.examples("train", limit=SHOWN)
    template = Template(recipe.rollout.template, dataset.scale)
    lengths = [
        len(tokenizer.apply_chat_template(template.messages(c), add_generation_prompt=True, return_dict=False))
        for c in dataset.contexts(rows, template.settings.facts)
    ]
    mean = round(sum(lengths) / len(lengths))
    return mean, f"prompts of {mean:,} tokens, the mean of {len(lengths)} training rows of {dataset.name} ({whose})"


def _tokenizer_at_hand(name: str) -> tuple[Any, str]:
    """The model's tokenizer if it is on this machine, else that of the packaged model, if it is; and whose it is."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from reczero.models import PACKAGED, load_tokenizer
    from reczero.models.packaged import packaged_dir

    here = Path(name).is_dir() or name in PACKAGED and (packaged_dir(name) / "config.json").is_file()
    if not here and name not in PACKAGED:
        try:
            here = isinstance(try_to_load_from_cache(name, "tokenizer.json"), str)
        except HFValidationError:
            here = False
    if here:
        return load_tokenizer(name), "its tokenizer"
    for other in PACKAGED:
        if (packaged_dir(other) / "config.json").is_file():
            return load_tokenizer(other), f"counted with the tokenizer of {other}, for the model's is not here"
    return None, ""


def _answer_tokens(recipe: "Recipe", given: int | None) -> tuple[int, str]:
    if given is not None:
        return given, f"answers of {given:,} tokens (--answer-tokens)"
    from reczero.reasoning import Template

    rollout = recipe.rollout
    if rollout.guided:
        sections = len(Template(rollout.template).thinking)
        tokens = sections * rollout.template.section_tokens + TAGS * (sections + 1)
        return tokens, f"answers of {tokens} tokens: {sections} full sections, and {TAGS} for each pair of tags"
    tokens = min(ANSWER, rollout.max_tokens)
    return tokens, f"answers of {tokens} tokens (the paper's policy: about {ANSWER}; at most {rollout.max_tokens:,})"


def _assumed(
    recipe: "Recipe", machine: "Machine", engine: str, examples: int, preset: str | None
) -> list[str]:  # fmt: skip
    m, t = recipe.model, recipe.training
    kind = "measured here" if machine.measured else "assumed: no GPU was at hand"
    notes = [
        f"{machine.name}: {machine.flops / 1e12:,.4g} TFLOP/s, {machine.memory / 1e9:,.4g} GB, "
        f"{machine.bandwidth / 1e9:,.4g} GB/s, link {machine.link / 1e9:,.4g} GB/s, "
        f"network {machine.network / 1e9:,.4g} GB/s ({machine.source})",
        f"reached of it: {machine.update_share:.0%} of FLOP/s, {machine.decode_share:.0%} of memory bandwidth in "
        f"decoding with {1000 * machine.step_seconds:.3g} ms a step beside it, {machine.comm_share:.0%} of link and "
        f"network; {machine.fixed / 1e9:.1f} GB taken before any tensor, {machine.activation_factor:.2f} bytes held "
        f"for one of activations ({kind})",
        "every group has a gradient; answers are all of the average length (the longest decides when a rollout ends, "
        "so a real one takes longer); gathering weights and reducing gradients goes on beside arithmetic, the longer "
        "counts",
    ]
    if m.dtype == "float32" and not machine.measured and engine == "local":
        notes.append(
            "this recipe is in float32, and the peak is that of bf16: times are too short by what lies between"
        )
    if engine == "verl":
        notes.append(
            "verl: FSDP, weights, gradients and AdamW in fp32 and divided by all GPUs, passes in bf16; every answer "
            "computes its prompt in the update, and once more for the old policy's log-probabilities; logits of all "
            "tokens of a micro-batch; vLLM takes half of the memory in rollouts, sleeps in updates, "
            "and computes a prompt once"
        )
    else:
        how = (
            "vLLM beside it with 30 % of the memory"
            if recipe.rollout.engine == "vllm"
            else "rollouts with the same weights"
        )
        notes.append(
            f"local: one process a GPU, preset {preset or 'zero2 (ddp on one GPU)'}; weights that learn and AdamW in "
            f"fp32, products in {m.dtype}; every prompt is computed once; {how}"
        )
    if not recipe.training.steps:
        known = recipe.data.train_examples is not None
        notes.append(
            f"{examples:,} training rows ({'the recipe' if known else 'as in the paper; say data.train_examples'})"
        )
    if recipe.method != "reczero":
        notes.append("SFT on every trace asked for; the teacher's own time is not counted")
    if recipe.method == "iterate":
        notes.append(f"all of the {recipe.iterate.rounds} rounds")
    limits = {"training.minutes": t.minutes}
    if recipe.method != "reczero":
        limits["sft.minutes"] = recipe.sft.minutes
    if told := [f"{name} {minutes:g}" for name, minutes in limits.items() if minutes is not None]:
        notes.append(f"a stage ends at its limit ({', '.join(told)})")
    if not recipe.evaluation.test_examples:
        notes.append("test predictions are not counted (evaluation.test_examples is open)")
    return notes


def _print(
    recipe: "Recipe", parameters: int, machine: "Machine", plans: list[dict[str, Any]], prompt: int, answer: int
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    work = plans[0]["work"]
    engine = plans[0]["engine"]
    typer.echo(
        f"{recipe.model.name}, {parameters / 1e9:.3g} billion weights; {work['groups']} groups of {work['group_size']} "
        f"answers a step, prompts of {prompt:,} and answers of {answer:,} tokens; engine {engine['name']}"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"on {machine.name}")
    for each in plans:
        table.add_column(f"{each['gpus']:,} GPU" + "s" * (each["gpus"] > 1), justify="right")

    def row(name: str, show: Any) -> None:
        table.add_row(name, *(show(each) for each in plans))

    def size(key: str) -> Any:
        return lambda p: f"{p['step']['memory'][key] / 1e9:,.1f}"

    def if_it_fits(show: Any) -> Any:  # else there is no such step to time
        return lambda p: show(p) if p["step"]["fit"]["fits"] else "-"

    def seconds(key: str) -> Any:
        return if_it_fits(lambda p: _seconds(p["step"]["seconds"][key]))

    row("fits", lambda p: "yes" if p["step"]["fit"]["fits"] else "NO")
    for name, key in (
        ("weights, GB a GPU", "weights"), ("gradients", "gradients"), ("AdamW", "optimizer"),
        ("gathered layers", "gathered"), ("activations", "activations"), ("logits", "logits"),
        ("peak in the update", "update"), ("peak in the rollout", "rollout"),
    ):  # fmt: skip
        row(name, size(key))
    row("largest micro-batch, tokens", lambda p: f"{p['step']['fit']['most_tokens']:,}")
    row("answers decoded together", lambda p: f"{p['step']['fit']['most_answers']:,}")
    table.add_section()
    row("update, PFLOP, stock", lambda p: f"{p['step']['flops']['stock'] / 1e15:,.3g}")
    row("  a prompt once", lambda p: f"{p['step']['flops']['shared'] / 1e15:,.3g}")
    row("  stock / once", lambda p: f"{p['step']['flops']['ratio']:.2f}")
    table.add_section()
    row("rollout, seconds a step", seconds("rollout"))
    row("update", seconds("update"))
    row("  its arithmetic, stock", seconds("update_stock"))
    row("  a prompt once", seconds("update_shared"))
    row("  communication, beside it", seconds("communication"))
    row("step", seconds("step"))
    row("GPUs without work", lambda p: f"{p['step']['layout']['idle']:,}")
    table.add_section()
    row("optimizer steps", lambda p: f"{sum(s['steps'] for n, s in p['run']['stages'].items() if n != 'test'):,}")
    row("hours", if_it_fits(lambda p: f"{p['run']['hours']:,.3g}"))
    row("GPU-hours", if_it_fits(lambda p: f"{p['run']['gpu_hours']:,.3g}"))
    if plans[0]["run"]["cost"] is not None:
        row("cost", if_it_fits(lambda p: f"{p['run']['cost']:,.2f}"))
    Console(highlight=False, width=max(80, 34 + 14 * len(plans))).print(table)


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _remarks(plans: list[dict[str, Any]]) -> list[str]:
    """What does not fit and what would, and GPUs without work."""
    said = []
    for each in plans:
        fit, count = each["step"]["fit"], f"{each['gpus']:,} GPU" + "s" * (each["gpus"] > 1)
        if not fit["fits"]:
            ways = "; or ".join(each["ways_out"]) or "a GPU with more memory, or a smaller model"
            said.append(f"{count}: does not fit: {fit['why']}. What would: {ways}.")
        work, shared = each["work"], each["engine"]["shared"]
        units = work["groups"] * (1 if shared else work["group_size"])
        if units % each["gpus"]:
            what = "groups" if shared else "answers"
            said.append(f"{count}: `reczero launch` refuses it: {units} {what} a step can't be shared evenly.")
        if idle := each["step"]["layout"]["idle"]:
            unit = "a group is" if each["engine"]["shared"] else "an answer is"
            said.append(
                f"{count}: {idle:,} have no work, for {unit} whole on a GPU; training.groups_per_step="
                f"{each['groups_for_all']} would use all. Larger steps are fewer steps on the same rows: another "
                f"optimisation, whose learning rate must be found anew."
            )
    return said
