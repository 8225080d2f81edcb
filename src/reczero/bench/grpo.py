"""A GRPO step by stock TRL and by ours, in turn: same model, prompts, group size and completion lengths.

Each trainer lives in a process of its own (so that its peak memory is its own) and makes one optimizer step when told
to; only one of them works at a time. Stock TRL is left as it is; ours runs as `reczero train` runs it.
"""

import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from reczero.errors import UserError

GIB = 1024**3
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """One GRPO step: `groups` prompts of `prompt` tokens, each answered `group_size` times with `answer` tokens."""

    prompt: int = 400
    answer: int = 120
    group_size: int = 8
    groups: int = 4

    @property
    def limit(self) -> float:
        """G(P + R) / (P + GR): how many times fewer tokens pass through the model when a prompt is computed once."""
        g, p, r = self.group_size, self.prompt, self.answer
        return g * (p + r) / (p + g * r)


@dataclass(frozen=True)
class Arithmetic:
    """Operations (a multiplication and an addition are two) that a step needs, nothing computed twice.

    Forward pass of a packed group: 2 operations per weight of the blocks and token, 2 D V per trained token in the
    head, 4 H d per layer for every pair of a token and one that it sees. The backward pass takes twice as many.
    """

    weights: int  # of all linear layers of the blocks
    head: int  # D V
    pair: int  # 4 H d, all layers

    def update(self, shape: Shape) -> float:
        p, r, g = shape.prompt, shape.answer, shape.group_size
        pairs = p * (p + 1) / 2 + g * (r * p + r * (r + 1) / 2)
        forward = 2 * self.weights * (p + g * r) + 2 * self.head * g * r + self.pair * pairs
        return 3 * shape.groups * forward


def compare(
    shape: Shape, model: str, repeats: int, say: Say, stock: bool = True, stock_rows: int | None = None
) -> dict[str, Any]:
    """Measures `repeats` steps of each trainer, after one to warm up. Times are seconds, sizes GiB.

    Stock TRL warms up on short prompts; ours on full ones, for the memory that it keeps is fetched in its first step.

    stock: False measures ours alone. stock_rows: rows in a micro-batch of stock TRL, by default a group, as ours.
    """
    from reczero.models import resolve_model

    if shape.prompt < 64:
        raise UserError("--prompt-tokens: at least 64, for the chat template takes some.")
    place = str(resolve_model(model))
    rows = stock_rows or shape.group_size
    timed: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    peaks = []
    with worker("ours", shape, place, repeats) as ours, worker("stock", shape, place, repeats, rows, stock) as other:
        arithmetic = Arithmetic(**ours.ask("arithmetic"))
        turns = {"stock": other, "ours": ours} if stock else {"ours": ours}
        for one in turns.values():
            one.ask("step")
        for repeat in range(repeats):
            peaks.append(ours.ask("peak"))
            for name, one in turns.items():
                seconds = one.ask("step")
                timed[name].append(seconds)
                say(
                    f"{repeat + 1}/{repeats} {name:5} step {seconds['step']:6.1f} s = rollout {seconds['rollout']:.1f}"
                    f" + update {seconds['update']:.1f}"
                )
        memory = {name: one.ask("memory") for name, one in turns.items()}
    tokens = shape.groups * shape.group_size * shape.answer
    result: dict[str, Any] = {
        "shape": asdict(shape),
        "model": model,
        "repeats": repeats,
        "arithmetic_limit": shape.limit,
        "gemm_peak_gflops": max(peaks),
        "update_gflop": arithmetic.update(shape) / 1e9,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    for name in turns:
        seconds = {part: spread([t[part] for t in timed[name]]) for part in ("rollout", "update", "step")}
        rates = {f"{part}_tokens_per_second": tokens / seconds[part]["median"] for part in ("rollout", "step")}
        result[name] = {"seconds": seconds, **rates, "peak_memory_gib": memory[name]}
    if stock:
        result["stock"]["rows_per_micro_batch"] = rows
        for part in ("step", "update", "rollout"):
            pairs = zip(timed["stock"], timed["ours"], strict=True)
            result[f"{part}_ratio"] = spread([theirs[part] / own[part] for theirs, own in pairs])
        result["memory_ratio"] = spread([memory["ours"] / memory["stock"]])
    needed = arithmetic.update(shape) / 1e9 / max(peaks)
    result["update_peak_share"] = spread([needed / t["update"] for t in timed["ours"]])
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


# --- one trainer in a process of its own ------------------------------------------------------------------------------


class _Worker:
    def __init__(self, pipe):
        self._pipe = pipe

    def ask(self, what: str) -> Any:
        self._pipe.send(what)
        try:
            return self._pipe.recv()
        except EOFError:
            raise UserError("bench: a measuring process died; see what it printed above (memory?).") from None


@contextmanager
def worker(
    kind: str, shape: Shape, model: str, repeats: int, rows: int | None = None, wanted: bool = True
) -> Iterator[_Worker]:
    if not wanted:
        yield _Worker(None)
        return
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, kind, shape, model, repeats, rows), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Worker(mine)
    finally:
        mine.close()
        process.join(timeout=10)
        process.terminate()


def _work(pipe, kind: str, shape: Shape, model: str, repeats: int, rows: int | None) -> None:
    """Answers "arithmetic", "peak" and "memory" at once; "step" makes an optimizer step and answers with seconds."""
    import warnings

    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from reczero.machine import keep_freed_memory
    from reczero.models import load_policy, quiet

    warnings.filterwarnings("ignore")
    if kind == "ours":
        keep_freed_memory()
    policy_model, tokenizer = load_policy(model, dtype="float32")
    arithmetic = _arithmetic(policy_model)

    def serve() -> None:
        """Until a step is asked for."""
        while (what := pipe.recv()) != "step":
            if what == "peak":
                pipe.send(_gemm_peak(policy_model.config.hidden_size))
            elif what == "memory":
                pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB)
            else:
                pipe.send(asdict(arithmetic))

    class Turns(TrainerCallback):
        """Seconds of each part of a step; `cpu_` those of this process's threads, which others cannot lengthen much."""

        def __init__(self):
            self.spent: dict[str, float] = {}

        def count(self, part: str, sign: int) -> None:
            """Called with -1 where a part begins, with 1 where it ends."""
            for name, now in ((part, time.perf_counter()), (f"cpu_{part}", time.process_time())):
                self.spent[name] = self.spent.get(name, 0.0) + sign * now

        def on_step_begin(self, *_, **__):
            serve()
            self.spent = {}
            self.count("step", -1)

        def on_pre_optimizer_step(self, *_, **__):
            self.count("optimizer", -1)

        def on_optimizer_step(self, *_, **__):
            self.count("optimizer", 1)

        def on_step_end(self, *_, **__):
            self.count("step", 1)
            for kind in ("", "cpu_"):  # the optimizer's part is in it
                self.spent[f"{kind}update"] = self.spent[f"{kind}step"] - self.spent[f"{kind}rollout"]
            pipe.send(self.spent)

    turns = Turns()
    with tempfile.TemporaryDirectory() as folder, quiet():
        make = _ours if kind == "ours" else _stock
        trainer = make(policy_model, tokenizer, shape, repeats + 1, folder, rows)
        generate = trainer._generate_and_score_completions

        def timed(inputs):
            turns.count("rollout", -1)
            output = generate(inputs)
            turns.count("rollout", 1)
            return output

        trainer._generate_and_score_completions = timed
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(turns)
        try:
            trainer.train()
            serve()
        except (EOFError, BrokenPipeError):  # the command has ended
            pass


def _config(shape: Shape, steps: int, folder: str, **settings):
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder, num_generations=shape.group_size, max_completion_length=shape.answer, max_steps=steps,
        learning_rate=1e-7, beta=0.0, loss_type="grpo", temperature=1.0, seed=0, bf16=False, use_cpu=True,
        gradient_checkpointing=False, shuffle_dataset=False, save_strategy="no", logging_steps=1, report_to="none",
        remove_unused_columns=False, dataloader_pin_memory=False, disable_tqdm=True, **settings,
    )  # fmt: skip


def _stock(model, tokenizer, shape: Shape, steps: int, folder: str, rows: int | None):
    from trl import GRPOTrainer

    rows = rows or shape.group_size
    config = _config(
        shape, steps, folder, per_device_train_batch_size=rows,
        gradient_accumulation_steps=shape.groups * shape.group_size // rows,
        generation_kwargs={"min_new_tokens": shape.answer},
    )  # fmt: skip
    return GRPOTrainer(
        model=model, args=config, reward_funcs=_reward, train_dataset=_prompts(tokenizer, shape, steps, warm_up=64),
        processing_class=tokenizer,
    )  # fmt: skip


def _ours(model, tokenizer, shape: Shape, steps: int, folder: str, _rows):
    from reczero.reasoning import Template
    from reczero.rollout import Policy
    from reczero.rollout.decoder import decode
    from reczero.training.grpo import SharedPrefixGRPOTrainer

    class Forced(Policy):
        """Answers of just `max_tokens` tokens."""

        def answer(self, prompts, answers=1, *, temperature=0.0, seed=None, states=None, **_):
            import torch

            return decode(
                self.model, prompts, answers, end=-1, max_tokens=self.max_tokens, temperature=temperature,
                generator=torch.Generator().manual_seed(seed), states=states,
            )  # fmt: skip

    config = _config(shape, steps, folder, per_device_train_batch_size=shape.groups * shape.group_size)
    return SharedPrefixGRPOTrainer(
        policy=Forced(model, tokenizer, Template(), guided=False, max_tokens=shape.answer), args=config,
        tokens_per_batch=shape.prompt + shape.group_size * shape.answer,  # a group at a time, as stock
        reward_funcs=_reward, train_dataset=_prompts(tokenizer, shape, steps, warm_up=shape.prompt),
        processing_class=tokenizer,
    )  # fmt: skip


def _reward(completions, **_) -> list[float]:
    """No two answers of a group alike, so that every group has a gradient."""
    return [float(i) for i in range(len(completions))]


def _prompts(tokenizer, shape: Shape, steps: int, warm_up: int):
    """Prompts of exactly `shape.prompt` tokens, no two alike; of `warm_up` tokens in the first step."""
    from datasets import Dataset

    draw = random.Random(0)
    lengths = [warm_up] * shape.groups + [shape.prompt] * (shape.groups * (steps - 1))
    return Dataset.from_dict({"prompt": [_prompt(tokenizer, length, draw) for length in lengths]})


def _prompt(tokenizer, length: int, draw: random.Random) -> list[dict[str, str]]:
    """Common words at random, and a few digits to make the length exact."""

    def messages(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    def tokens(text: str) -> int:
        return len(tokenizer.apply_chat_template(messages(text), add_generation_prompt=True, return_dict=False))

    text, words = "Say", _COMMON.split()
    while (missing := length - tokens(text)) > 8:
        text += "".join(" " + word for word in draw.choices(words, k=max(1, missing // 8)))
    for _ in range(missing):
        text += draw.choice("123456789")
        if tokens(text) == length:
            break
    if tokens(text) != length:
        raise UserError(f"bench: found no prompt of exactly {length} tokens for this tokenizer.")
    return messages(text)


_COMMON = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service
friend father power
"""


def _arithmetic(model) -> Arithmetic:
    from torch import nn

    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 4 * config.num_attention_heads * size * config.num_hidden_layers
    return Arithmetic(linear, head.weight.numel(), pair)


def _gemm_peak(width: int) -> float:
    """GFLOP/s of the fastest fp32 matrix product found, by MKL or oneDNN, on the update's shapes and on a square."""
    import torch
    import torch.nn.functional as F

    best = 0.0
    with torch.no_grad():
        for rows, inner, columns in ((2048, 2048, 2048), (1360, width, 4 * width), (1360, 4 * width, width)):
            x, w = torch.randn(rows, inner), torch.randn(columns, inner)
            products = [lambda x=x, w=w: F.linear(x, w)]
            if torch.backends.mkldnn.is_available():
                blocks = torch.ops.mkldnn._reorder_linear_weight(w)
                products.append(
                    lambda x=x, b=blocks: torch.ops.mkldnn._linear_pointwise(x, b, None, "none", [], "")
                )  # fmt: skip
            for product in products:
                seconds = []
                for _ in range(8):
                    start = time.perf_counter()
                    product()
                    seconds.append(time.perf_counter() - start)
                best = max(best, 2e-9 * rows * inner * columns / statistics.median(seconds[1:]))
    return best
