"""The real small model on real ratings: exact against transformers, and one end-to-end run."""

import polars as pl
import pytest
import torch

from reczero.cli import main
from reczero.data import prepare_source, spread
from reczero.files import cache_dir
from reczero.models import load_policy
from reczero.reasoning import Template, TemplateSettings
from reczero.rollout import Policy
from reczero.rollout.decoder import decode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real():
    data = prepare_source("ml-100k", cache_dir() / "prepared" / "ml-100k-tests")
    rows = spread(data.examples("test"), 12)
    model, tokenizer = load_policy("smollm2-135m")
    template = Template(TemplateSettings(instructions="brief", history=3, section_tokens=8), data.scale)
    policy = Policy(model, tokenizer, template, True, 24)
    return policy, [policy.encode(template.messages(context)) for context in data.contexts(rows)]


def test_free_greedy_decoding_equals_transformers_generate(real):
    policy, prompts = real
    for prompt, (got,) in zip(prompts, decode(policy.model, prompts, end=-1, max_tokens=24), strict=True):
        ids = torch.tensor([prompt])
        # Without a mask, generate would take the end-of-turn tokens inside the prompt for padding.
        how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None}
        want = policy.model.generate(ids, max_new_tokens=24, **how)
        assert got.tokens == want[0, len(prompt) :].tolist()


def test_guided_answers_parse(real):
    policy, prompts = real
    answers = policy.answer(prompts[:4], 4, temperature=1.0, seed=0)
    assert all(policy.read(c)[1].rating in {1, 2, 3, 4, 5} for row in answers for c in row)


def test_quickstart_runs_end_to_end_in_small(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["training.steps=2", "training.groups_per_step=2", "evaluation.test_examples=16"]
    small += ["evaluation.validation_examples=8", "evaluation.validation_steps=2"]
    assert main.run(["train", "quickstart", *small, "--out", str(run)]) == 0
    table = pl.read_csv(run / "comparison.csv")
    assert table.filter(pl.col("model").is_in(["untrained", "reczero"]))["parse_rate"].to_list() == [1.0, 1.0]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "analyze_user" in page and "</html>" in page
    assert main.run(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    exported, _ = load_policy(tmp_path / "model")
    assert sum(p.numel() for p in exported.parameters()) > 1e8
