"""A run from recipe to report: the stages of each method, each done once."""

import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from reczero.errors import UserError
from reczero.evaluation.choice import rank
from reczero.evaluation.compare import finish_comparison
from reczero.evaluation.report import write_report
from reczero.files import atomic_file, held, read_json
from reczero.machine import keep_freed_memory, multiplies_bfloat16
from reczero.models import ADAPTER, resolve_model
from reczero.recipes import Recipe, TeacherRecipe
from reczero.recipes.rows import NothingToLearn, prepared, select, without_histories
from reczero.rollout import Policy
from reczero.teachers.traces import contexts_of, kept, read_traces, teach_rows, traces_key, write_traces

from .grpo import require_weighing
from .processes import Processes, started
from .reczero import reinforce
from .run import Run
from .session import Report, Say, Session
from .sft import imitate


def train(recipe: Recipe, out: Path, *, resume: bool, say: Say, report: Report, reuse: Path | None = None) -> Run:
    """Runs the recipe into folder `out`. Raises UserError; whatever was finished before a kill is not done again.

    say: told each stage in words. report: told every line of metrics.jsonl, and {"predicted", "of", "what"} meanwhile.
    reuse: another run; stages that it did with the same inputs are taken from there.
    Processes that a launcher started share the work; they need a common file system.
    """
    if recipe.training.groups_per_step % (count := started()[1]):
        step = recipe.training.groups_per_step
        raise UserError(f"training.groups_per_step: {step} is not a multiple of {count} processes.")
    if recipe.rollout.engine == "vllm" and recipe.method != "sft" and find_spec("vllm") is None:
        raise UserError(
            "rollout.engine: vllm is not installed here (it wants a GPU): pip install 'trl[vllm]', or set "
            "rollout.engine=shared-prefix."
        )
    processes = Processes.join()
    if not processes.main:
        say = report = _silent
    keep_freed_memory()
    run = Run.open(out, recipe, resume, writes=processes.main)
    processes.wait()
    if run.finished:
        say(f"{out}: this run is finished; reusing it")
        return run
    with processes.main_first():  # what must be fetched or prepared is so once
        data = prepared(recipe)
        for key in sorted(recipe.data.model_fields_set & data.info["settings"].keys()):
            asked, made = getattr(recipe.data, key), data.info["settings"][key]
            if asked != made:
                say(f"data.{key}: the recipe says {asked}, {data.path} was prepared with {made}, which counts")
        parts = select(recipe, data)
        say(f"data: {data.name}, " + ", ".join(f"{part.examples.height:,} {name} rows" for name, part in parts.items()))
        session = Session(recipe, run, processes, data, parts, say, report, reuse)
        policy = session.policy()
        require_what_later_stages_need(recipe, policy)
    size = sum(p.numel() for p in policy.model.parameters())
    say(f"policy: {recipe.model.name}, {size / 1e6:,.0f} million weights")
    if recipe.model.dtype == "bfloat16" and processes.device.type == "cpu" and not multiplies_bfloat16():
        say(
            "warning: this processor has no instructions for products in bfloat16, which take many times as long as in "
            "float32 here; set model.dtype=float32"
        )
    if processes.count > 1:
        say(f"{processes.count} processes, {recipe.training.groups_per_step // processes.count} groups a step in each")
    known = run.info.get("data", {}).get("fingerprint")
    if known not in (None, data.fingerprint):
        raise UserError(
            f"{out}: was begun on other data than {data.path} holds now; restore it, or choose another --out."
        )
    if processes.main:
        run.begin(recipe)
        _write_test_examples(session, policy)
    run.save(
        method=recipe.method, data={"name": data.name, "fingerprint": data.fingerprint}, scale=data.scale.to_dict(),
        usual=session.usual,
    )  # fmt: skip
    del policy
    with held(out) if processes.main else nullcontext():
        _all_stages(session)
    processes.part()
    return run


def require_what_later_stages_need(recipe: Recipe, policy: Policy) -> None:
    """Raises UserError, before anything is paid for, for what a stage would refuse or lose hours later."""
    base, reinforced = resolve_model(recipe.model.name), recipe.method != "sft"
    above = recipe.model.lora or (recipe.training.kl and reinforced)
    if above and isinstance(base, Path) and (base / ADAPTER).is_file():
        raise UserError(
            f"model.name: {recipe.model.name} is an adapter, which another one (model.lora) or a KL term would lose; "
            "`reczero export` merges that of a run into a model of its own."
        )
    if reinforced and recipe.training.rating == "expected":
        require_weighing(policy)


def _all_stages(session: Session) -> None:
    """What the method asks for, to the report."""
    recipe, run, processes = session.recipe, session.run, session.processes
    session.predict_test("untrained")
    stage = METHODS[recipe.method](session)
    session.finish(stage)
    processes.wait()
    session.predict_test(recipe.method, run.path / "model")
    if processes.main:
        finish_comparison(run.path, without_histories(session.data, "train"), session.data.scale)
        write_report(run.path)
    run.save(finished=True)


def _silent(_: object) -> None:
    """What a process says that does not speak."""


# --- methods: each returns the stage whose model is the run's ---------------------------------------------------------


def _reczero(session: Session) -> str:
    reinforce(session, "grpo", None)
    return "grpo"


def _sft(session: Session) -> str:
    traces = kept(_taught(session, "teach", session.recipe.teacher), session.run.path)
    part = contexts_of(session.data, traces, session.recipe.rollout.template.facts)
    imitate(session, "sft", traces, part.contexts)
    return "sft"


def _recone(session: Session) -> str:
    session.predict_test("sft", session.model_of(_sft(session)))
    reinforce(session, "grpo", session.model_of("sft"))
    return "grpo"


def _iterate(session: Session) -> str:
    """RecOne, then rounds in which the best policy so far writes the traces that the recipe's own model learns from.

    A round is kept if its validation MAE is lower than the best by more than `min_gain` and its answers are as usable
    (`rank`); the first that is not ends it.
    """
    s, first, run = session.recipe.iterate, session.recipe.teacher, session.run
    best = _recone(session)
    used = _taught(session, "teach", first)["example_id"]
    session.predict_test("recone", session.model_of(best))
    before = run.info["stages"][best]["best_validation"]
    rounds = [
        {"round": 0, "validation_mae": before["mae"], "parse_rate": before["parse_rate"], "gain": None, "kept": True}
    ]
    for i in range(1, s.rounds + 1):
        teach, sft, grpo = f"teach-{i}", f"sft-{i}", f"grpo-{i}"
        settings = TeacherRecipe(
            kind="policy", policy=str(session.model_of(best)), samples=s.samples, keep=s.keep, retell=False,
            temperature=s.temperature, tolerance=first.tolerance, balance=first.balance, examples=first.examples,
        )  # fmt: skip
        try:
            written = _taught(session, teach, settings, used)
            traces = kept(written, run.path / "traces" / teach)
        except NothingToLearn as error:
            session.say(f"round {i}: {error} So it ends here.")
            break
        used = pl.concat([used, written["example_id"]])
        part = contexts_of(session.data, traces, session.recipe.rollout.template.facts)
        imitate(session, sft, traces, part.contexts)
        reinforce(session, grpo, session.model_of(sft))
        alone, after = (run.info["stages"][name]["best_validation"] for name in (sft, grpo))
        gain = before["mae"] - after["mae"]
        better = gain > s.min_gain and rank(after)[0] <= rank(before)[0]
        rounds.append(
            {"round": i, "traces": traces.height, "sft_validation_mae": alone["mae"], "validation_mae": after["mae"],
             "parse_rate": after["parse_rate"], "gain": gain, "kept": better}
        )  # fmt: skip
        run.save(rounds=rounds)
        session.say(
            f"round {i}: validation MAE {after['mae']:.3f} (SFT alone {alone['mae']:.3f}, before {before['mae']:.3f}), "
            f"{after['parse_rate']:.0%} well-formed: " + ("kept" if better else "not better, so it ends here")
        )
        if not better:
            break
        best, before = grpo, after
    return best


METHODS = {"reczero": _reczero, "sft": _sft, "recone": _recone, "iterate": _iterate}


def _taught(session: Session, stage: str, settings: TeacherRecipe, without: pl.Series | None = None) -> pl.DataFrame:
    """All traces of a stage: those of the folder that the recipe names, or new ones in the run's `traces/STAGE`.

    without: example ids that were written about before.
    """
    recipe, run, data = session.recipe, session.run, session.data
    if settings.traces:
        return read_traces(Path(settings.traces))
    folder = run.path / "traces" / stage
    if not run.stage_done(stage):
        rows = teach_rows(recipe, data, without)
        filtered = settings.model_dump(mode="json", exclude={"policy", "endpoint", "traces"})
        key = session.key(traces_key(recipe, settings, data), filtered, rows["example_id"].to_list())
        if not session.settled(stage, key):
            began = time.perf_counter()
            with session.processes.main_first():  # and alone: the others read what it wrote
                if session.processes.main:
                    session.say(f"{stage}: {settings.kind} teacher, {rows.height:,} examples")
                    write_traces(recipe, settings, data, rows, folder, session.policy, session.report)
                    counts = read_json(folder / "teach.json")["counts"]
                    session.say(f"{stage}: " + ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items()))
            run.stage(stage, key=key)
            run.done(stage, time.perf_counter() - began)
    return read_traces(folder)


def _write_test_examples(session: Session, policy: Policy) -> None:
    """What the report shows of each test row; the prompt is the exact text that the model sees."""
    test = session.parts["test"]
    prompts = [policy.tokenizer.decode(policy.encode(policy.template.messages(c))) for c in test.contexts]
    columns = (
        "example_id",
        "user_id",
        "item_id",
        "rating",
        "timestamp",
        "user_avg",
        "item_avg",
        "user_count",
        "item_count",
    )
    table = test.examples.select(columns).with_columns(
        title=pl.Series([c.item.title for c in test.contexts]), prompt=pl.Series(prompts)
    )
    with atomic_file(session.run.path / "test_examples.parquet") as path:
        table.write_parquet(path)
