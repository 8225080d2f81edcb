"""Two processes train as one does: the same weights from the same completions, whatever each has to do, without waiting
for ever. This file is its own worker: `torchrun test_two_processes.py FOLDER NAMES`, or `accelerate launch`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from reczero.models import load_policy
from reczero.reasoning import Context, HistoryEntry, Item, Scale, Template
from reczero.recipes import Recipe
from reczero.recipes.rows import Part
from reczero.rollout import Policy
from reczero.rollout.decoder import Completion
from reczero.rollout.frozen import States
from reczero.training.reczero import build_trainer
from reczero.training.session import freeze_below
from reczero.training.sft import build_sft_trainer

GROUP, GROUPS, STEPS = 4, 4, 2
LIMIT = 100  # seconds for all cases
# Which of the groups of a step have a gradient: 2 and 1 (or 1 and 2), none and 2, none at all.
USEFUL = {"all": [1, 1, 1, 1], "uneven": [1, 1, 0, 1], "one idle": [0, 0, 1, 1], "all idle": [0, 0, 0, 0]}
CASES = [
    # name, useful, loss, tokens_per_batch, trained layers
    ("as launched", "uneven", "grpo", 150, None),  # the first: nothing has set up the processes before
    ("uneven", "uneven", "grpo", 150, None),
    ("one idle", "one idle", "grpo", 150, None),
    ("all idle", "all idle", "grpo", 150, None),
    ("dapo", "uneven", "dapo", 150, None),
    ("dr_grpo", "one idle", "dr_grpo", 150, None),
    ("frozen", "uneven", "grpo", 150, 1),
    ("unequal micro-batches", "uneven", "grpo", 4096, None),  # 8 rows in one process, 4 in the other
    ("float64", "uneven", "grpo", 150, None),
    ("lora", "uneven", "grpo", 150, None),
    ("gradient checkpointing", "uneven", "grpo", 150, None),
    ("ratings weighed", "all", "grpo", 150, None),
]
LORA = {"lora": {"rank": 4, "alpha": 8}}
MODEL = {
    "lora": LORA, "gradient checkpointing": {"gradient_checkpointing": True}, "sft with lora": LORA,
    "ratings weighed": LORA,
}  # fmt: skip
TRAINING = {"ratings weighed": {"rating": "expected", "kl": 0.5}}
SFT = ["sft", "sft with lora", "sft on beliefs"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# On CPUs its own way wants MPI; this one starts the processes as torchrun does.
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
    "--dynamo_backend=no", "--main_process_port=0",
]  # fmt: skip


def recipe(name: str, loss: str = "grpo", tokens: int = 150) -> Recipe:
    template = {"variant": "think", "section_tokens": 12, "instructions": "brief", "history": 3, "opinions": 0}
    training = {"steps": STEPS, "groups_per_step": GROUPS, "save_steps": 99, "loss": loss, "tokens_per_batch": tokens}
    return Recipe.model_validate(
        {
            "method": "reczero",
            "model": {"dtype": "float32"} | MODEL.get(name, {}),
            "rollout": {"guided": True, "max_tokens": 16, "group_size": GROUP, "template": template},
            "training": {**training, "learning_rate": 0.1, "schedule": "constant", "stratify": True}
            | TRAINING.get(name, {}),
            "sft": {
                "rating_weight": 3,
                "steps": STEPS,
                "traces_per_step": 4,
                "traces_per_batch": 2,
                "schedule": "constant",
            },
        }
    )


def part() -> Part:
    """Prompts of unequal length, one step after the other."""
    count = GROUPS * STEPS
    contexts = [
        Context(Item(f"Film {i}"), (HistoryEntry(Item("Ab" * 5 * i), 3.0),) * (i % 4), (), 3.5, i % 4)
        for i in range(count)
    ]
    return Part(pl.DataFrame({"example_id": [str(i) for i in range(count)], "rating": [1.0] * count}), contexts)


def policy_of(folder: Path, made: Recipe, name: str = "") -> Policy:
    model, tokenizer = load_policy(folder)
    if name == "float64":
        model.double()
    return Policy(model, tokenizer, Template(made.rollout.template, Scale()), True, made.rollout.max_tokens)


def make_answers(model_dir: Path) -> dict[str, list[dict]]:
    """Answers to each prompt, of unequal length and with more than one rating; how probable each was, too."""
    policy = policy_of(model_dir, recipe("answers"))
    prompts = [policy.encode(policy.template.messages(context)) for context in part().contexts]
    drawn = policy.answer(prompts, GROUP, temperature=1.3, seed=0, weigh=True)
    assert all(len({policy.read(c)[1].rating for c in answers}) > 1 for answers in drawn)
    assert len({len(c.tokens) for answers in drawn for c in answers}) > 4
    return {
        str(prompt): [
            {"tokens": c.tokens, "chosen": c.chosen, "ratings": c.ratings, "rating_at": c.rating_at} for c in answers
        ]
        for prompt, answers in zip(prompts, drawn, strict=True)
    }


def states_of(model, states: States, prompts: list[list[int]], groups: list[list[Completion]]) -> None:
    """Fills `states` as a rollout would, by plain passes of a model with the same frozen blocks."""
    for prompt, answers in zip(prompts, groups, strict=True):
        for answer in answers:
            with torch.no_grad():
                out = model(torch.tensor([prompt + answer.tokens]), output_hidden_states=True)
            x = out.hidden_states[states.first][0]
            states.answers.append([x[len(prompt) :]])
        states.prompts.append(x[: len(prompt)])


def run(folder: Path, name: str) -> None:
    """Trains a case of CASES on the answers of the file, and writes weights and what was logged."""
    _, useful, loss, tokens, layers = next(case for case in CASES if case[0] == name)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    made = recipe(name, loss, tokens)
    drawn = json.loads((folder / "answers.json").read_text())
    policy, out = policy_of(folder / "model", made, name), folder / f"{name} {processes}"
    untrained, _ = load_policy(folder / "model")
    if layers:
        freeze_below(policy.model, layers)
    trainer = build_trainer(policy, part(), made, out)
    start = {key: weight.detach().clone() for key, weight in policy.model.named_parameters()}
    assert trainer.frozen_blocks == (1 if layers else 0)
    order = [str(policy.encode(messages)) for messages in trainer.train_dataset["prompt"]]
    moves = dict(zip(order, USEFUL[useful] * STEPS, strict=True))

    def answer(prompts, answers, *, states=None, **_):
        groups = []
        for prompt in prompts:
            given = [Completion(**c) for c in drawn[str(prompt)]]
            group = [given[i if moves[str(prompt)] else 0] for i in range(answers)]
            for completion in group:
                completion.log_probs = [0.0] * len(completion.tokens)
            groups.append(group)
        if states:
            states_of(untrained, states, prompts, groups)
        return groups

    policy.answer = answer
    trainer.optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.1)
    passes = []
    trainer.model.register_forward_hook(lambda *_: passes.append(1) if torch.is_grad_enabled() else None)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "reward" in line]
    assert trainer.accelerator.num_processes == processes and len(logged) == STEPS
    result = {"start": start, "weights": dict(policy.model.named_parameters()), "logged": logged, "passes": len(passes)}
    torch.save(result, folder / f"{name} {processes} {trainer.accelerator.process_index}.pt")


def imitate(folder: Path, name: str) -> None:
    """The same for supervised fine-tuning, on answers of unequal length, and with distributions for their ratings."""
    made, rows = recipe(name), part()
    policy = policy_of(folder / "model", made)
    sections = dict.fromkeys(("analyze_user", "analyze_item"), "Well.")
    texts = [policy.template.write(sections | {"match": "so " * (3 * i % 7)}, 1 + i % 5) for i in range(8)]
    beliefs = np.random.default_rng(0).dirichlet(np.ones(5), len(texts)) if name == "sft on beliefs" else None
    trainer = build_sft_trainer(policy, rows.contexts, texts, made, folder / name, beliefs)
    trainer.optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.1)
    start = {key: weight.detach().clone() for key, weight in policy.model.named_parameters()}
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    result = {"start": start, "weights": dict(policy.model.named_parameters()), "logged": logged}
    processes, process = trainer.accelerator.num_processes, trainer.accelerator.process_index
    torch.save(result, folder / f"{name} {processes} {process}.pt")


def launch(folder: Path, names: list[str], launcher: list[str]) -> str:
    """Two processes, as users start them. Returns what they said."""
    command = [sys.executable, *launcher, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        [*command, str(folder), *names], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the workers too
            return f"they wait for each other\n{process.communicate()[0]}"


@pytest.fixture(scope="module")
def runs(tiny_model_dir, tmp_path_factory) -> tuple[Path, str]:
    """The folder of every case run, by one process (this one) and by two, and what the two said."""
    folder = tmp_path_factory.mktemp("two-processes")
    (folder / "model").symlink_to(tiny_model_dir)
    (folder / "answers.json").write_text(json.dumps(make_answers(tiny_model_dir)))
    names, threads = [*(case[0] for case in CASES), *SFT], torch.get_num_threads()
    main(folder, names)
    torch.set_num_threads(threads)
    return folder, launch(folder, names, TORCHRUN)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_two_processes_learn_what_one_does(runs, case):
    name, useful, _, tokens, _ = case
    one, first, second = results(runs, name, moves=useful != "all idle")
    for mine, theirs in zip(one["logged"], first["logged"], strict=True):
        for key in ("loss", "reward", "reward_std", "grad_norm", "num_tokens", "rating_kl"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=1e-5), (key, mine, theirs)
    groups = USEFUL[useful]
    most = max(sum(groups[:2]), sum(groups[2:]))  # of a process
    passes = [sum(groups), most, most] if tokens < 1000 else [1, 1, 1]  # none larger than a group, or all in one
    assert [x["passes"] for x in (one, first, second)] == [STEPS * n for n in passes]


def test_accelerate_launches_two_that_learn_what_one_does_in_float64(runs, tmp_path):
    """The same mean gradient as one process with twice the groups: weights agree to the last digits."""
    folder, _ = runs
    for name in ("model", "answers.json", "float64 1 0.pt"):
        (tmp_path / name).symlink_to(folder / name)
    said = launch(tmp_path, ["float64"], ACCELERATE)
    one, _, _ = results((tmp_path, said), "float64")
    assert all(weight.dtype == torch.float64 for weight in one["weights"].values())


@pytest.mark.parametrize("name", SFT)
def test_two_processes_imitate_as_one_does(runs, name):
    one, first, _ = results(runs, name)
    for mine, theirs in zip(one["logged"], first["logged"], strict=True):
        for key in ("loss", "grad_norm"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-5), (key, mine, theirs)


def results(runs: tuple[Path, str], name: str, moves: bool = True) -> list[dict]:
    """Of the one process and of the two, once their weights are found to be the same and to have moved, or not."""
    folder, said = runs
    made = [folder / f"{name} {x}.pt" for x in ("1 0", "2 0", "2 1")]
    assert all(path.is_file() for path in made), said[-5000:]
    one, first, second = map(torch.load, made)
    for key, weight in one["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key])
        exact = 1e-12 if name == "float64" else 1e-6
        assert torch.allclose(first["weights"][key], weight, atol=exact, rtol=exact), key
    assert any(not torch.equal(one["weights"][key], weight) for key, weight in one["start"].items()) == moves
    return [one, first, second]


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        imitate(folder, name) if name in SFT else run(folder, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
