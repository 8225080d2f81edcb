"""Ranking one user's candidates: together, in batches, and one by one with transformers' `generate`.

.venv/bin/python benchmarks/serving.py --candidates 50 --histories 10 50 150

The real small model on MovieLens-100K; guided answers of ours, and as many tokens from `generate`, greedy and free (so
without the cost of a grammar). All in one run, in turn, `--repeats` times; medians. What goes one by one is done for
the first `--alone` candidates, and its time multiplied, for each takes as long.
"""

import argparse
import time
from statistics import median

import torch

from reczero.data import Known, Origin, PrepareSettings, prepare_cached
from reczero.machine import keep_freed_memory
from reczero.models import load_policy
from reczero.reasoning import Template, TemplateSettings
from reczero.rollout import Policy
from reczero.serving.answering import Local


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--histories", type=int, nargs="+", default=[10, 50, 150])
    parser.add_argument("--alone", type=int, default=10)
    parser.add_argument("--section-tokens", type=int, default=16)
    parser.add_argument("--variant", choices=["think", "direct"], default="think", help="direct: the rating alone")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    keep_freed_memory()
    known = Known(prepare_cached(Origin(dataset="ml-100k"), PrepareSettings(history=max(asked.histories))))
    user = str(known.users["user_id"][0])
    names = known.candidates(user, asked.candidates)
    contexts = known.contexts([(user, name) for name in names])
    model, tokenizer = load_policy("smollm2-135m")
    print(f"{len(contexts)} candidates of one user, {torch.get_num_threads()} threads; medians of {asked.repeats}, s")
    print("history   prompt  shared  answer | together  batches of 32  one by one  generate | generate / together")
    for history in asked.histories:
        settings = TemplateSettings(
            variant=asked.variant,
            instructions="brief",
            history=history,
            opinions=0,
            section_tokens=asked.section_tokens,
        )
        local = Local(Policy(model, tokenizer, Template(settings, known.scale), True, 256), "small")
        prompts = [local.encode(context) for context in contexts]
        common = next(k for k, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
        lengths: list[int] = []

        def separately(prompts=prompts, lengths=lengths) -> None:
            for prompt, tokens in zip(prompts[: asked.alone], lengths, strict=False):
                ids = torch.tensor([prompt])
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                    min_new_tokens=tokens,
                )  # fmt: skip

        ways = {
            "together": lambda local=local: local.answer(contexts, together=True),
            "batches": lambda local=local: local.answer(contexts, batch_size=32),
            "one by one": lambda local=local: [local.answer([context]) for context in contexts[: asked.alone]],
            "generate": separately,
        }
        lengths += [answer.details["tokens"] for answer in ways["together"]()]  # and warms up
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.repeats):
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                share = len(contexts) / min(asked.alone, len(contexts)) if name in ("one by one", "generate") else 1
                seconds[name].append((time.perf_counter() - began) * share)
        together, batches, alone, generate = (median(seconds[name]) for name in ways)
        ratios = sorted(b / a for a, b in zip(seconds["together"], seconds["generate"], strict=True))
        print(
            f"{history:7d} {sum(map(len, prompts)) / len(prompts):8.0f} {common:7d} {sum(lengths) / len(lengths):7.0f}"
            f" | {together:8.1f} {batches:14.1f} {alone:11.1f} {generate:9.1f} | {generate / together:.1f}"
            f" ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
