"""The shared-prefix update is the plain one: log-probabilities, gradients, losses; and runs beside TRL's own."""

import copy
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType

import pytest
import torch
from datasets import Dataset as Rows
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trl import GRPOConfig, GRPOTrainer

from reczero.models import load_policy
from reczero.reasoning import Scale, Template, TemplateSettings
from reczero.rollout import Policy, head
from reczero.rollout.head import widen
from reczero.rollout.shared_prefix import cannot_share, shared_prefix_attention
from reczero.training.grpo import SharedPrefixGRPOTrainer, group_advantages
from reczero.training.session import freeze_below

G = 3
SLIDING = {"sliding_window": 8}
KINDS = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-windows": ("qwen2", SLIDING | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma3": (
        "gemma3_text",
        SLIDING
        | {"head_dim": 8, "query_pre_attn_scalar": 8}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", SLIDING),
    "mistral-narrow": ("mistral", {"sliding_window": 3}),  # most tokens of an answer see nothing of the prompt
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}),
}
SHARING = [kind for kind in KINDS if kind != "gemma2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny products gain nothing from more, and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    made = AutoTokenizer.from_pretrained(tiny_model_dir)
    made.padding_side = "left"
    return made


def tiny(kind, tokenizer, dtype=torch.float64):
    """A random model of three layers; large weights, so that a wrong mask or position shows."""
    torch.manual_seed(0)
    family, more = KINDS[kind]
    config = CONFIG_MAPPING[family](
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, attention_dropout=0.0, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weight, mean=float("gemma" not in family and "norm" in name), std=0.1)
    return model.eval()


def exact_norms(model):
    """RMSNorms in the dtype of what they are given; transformers' go through float32."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            epsilon, one = getattr(module, "variance_epsilon", None) or module.eps, "Gemma" in type(module).__name__

            def forward(x, module=module, epsilon=epsilon, one=one):
                return x * (x.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt() * (module.weight + one)

            module.forward = forward
    return model


def reward(completion_ids, **_):
    """Any rule that tells answers apart."""
    return [float(sum(tokens) % 8) / 4 for tokens in completion_ids]


def trainer_for(model, tokenizer, folder, guided=False, lora=False, rewards=reward, prompts=4, stock=False, **settings):
    """Four groups a step by ours, or by TRL's own with the same settings: micro-batches of one group, accumulated."""
    ours = {"advantage_epsilon": 1e-4, "tokens_per_batch": settings.pop("tokens_per_batch", 4096)}
    settings = {"temperature": 0.7, "learning_rate": 1e-3, "max_steps": 4, "max_completion_length": 12} | settings
    accumulation = settings.pop("accumulation", 4) if stock else 1
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=G * 4 // accumulation, num_generations=G,
        gradient_accumulation_steps=accumulation, report_to="none", use_cpu=True, logging_steps=1,
        save_strategy="no", lr_scheduler_type="constant", shuffle_dataset=False, remove_unused_columns=False,
        disable_tqdm=True, dataloader_pin_memory=False, **{"bf16": False, "gradient_checkpointing": False} | settings,
    )  # fmt: skip
    template = Template(TemplateSettings("think", "brief", section_tokens=2), Scale())
    questions = [[{"role": "user", "content": f"Rate film {'x' * (i % 5)} {i}."}] for i in range(prompts)]
    where = {"target_modules": "all-linear"}
    if lora == "upper":
        where = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [2]}
    adapters = LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM", **where) if lora else None
    rest = {"args": args, "reward_funcs": rewards, "train_dataset": Rows.from_dict({"prompt": questions})}
    rest |= {"processing_class": tokenizer, "peft_config": adapters}
    torch.manual_seed(5)
    ours["policy"] = Policy(model, tokenizer, template, guided, 12)
    trainer = GRPOTrainer(model=model, **rest) if stock else SharedPrefixGRPOTrainer(**ours, **rest)
    if lora:
        with torch.no_grad():  # adapters begin as nothing
            for name, weight in trainer.model.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.3)
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    if args.gradient_checkpointing:  # likewise
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    return trainer


def groups_of(trainer, empty=False):
    """Prompts that begin alike, of unequal lengths, the last two the same, and G answers of unequal lengths to each."""
    draw = torch.Generator().manual_seed(1)

    def some(count):
        return torch.randint(4, len(trainer.processing_class), (count,), generator=draw).tolist()

    common = some(11)
    prompts = [common + some(n) for n in (1, 9, 4)]
    prompts.append(prompts[-1])
    if trainer.policy.guide:
        found = trainer.policy.answer(prompts, G, temperature=1.0, seed=0)
        answers = [[c.tokens for c in completions] for completions in found]
        answers[0][1] = answers[0][1][:9]  # cut off, as by a limit
    else:
        answers = [[some(n) for n in lengths] for lengths in ((1, 7, 12), (5, 2, 9), (3, 3, 1), (10, 3, 6))]
    if empty:  # as TRL's mask_truncated_completions makes them
        answers[1], answers[3][0] = [[], [], []], []
    return prompts, answers


def batch_of(trainer, prompts, answers, advantages=None):
    """What TRL makes of a rollout: prompts padded on the left, answers on the right."""
    flat = [answer for group in answers for answer in group]
    wide, width = max(map(len, prompts)), max(map(len, flat))
    pad = trainer.processing_class.pad_token_id
    repeated = [prompt for prompt in prompts for _ in range(G)]
    mask = torch.tensor([[1] * len(answer) + [0] * (width - len(answer)) for answer in flat])
    draw = torch.Generator().manual_seed(2)
    tool = (torch.rand(mask.shape, generator=draw) < 0.8).long()  # some tokens are not the policy's
    if trainer.policy.guide:
        tool = torch.zeros_like(mask)
        for i, answer in enumerate(flat):
            tool[i, trainer.policy.guide.replay(answer)[0]] = 1
    rewards = torch.randn(len(flat), generator=draw)
    return {
        "prompt_ids": torch.tensor([[pad] * (wide - len(prompt)) + prompt for prompt in repeated]),
        "prompt_mask": torch.tensor([[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in repeated]),
        "completion_ids": torch.tensor([answer + [pad] * (width - len(answer)) for answer in flat]),
        "completion_mask": mask,
        "tool_mask": tool,
        "advantages": group_advantages(rewards, G, 1e-4) if advantages is None else advantages,
        "num_items_in_batch": (mask * tool).sum(),
    }


def joined(batch):
    """The arguments of `_get_per_token_logps_and_entropies`."""
    both = [torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask")]
    return *both, batch["completion_ids"].shape[1]


def plain(trainer, model, ids, mask, width, *_, **__):
    """As `_get_per_token_logps_and_entropies`: each row alone, the model's own attention, all logits."""
    log_probs, entropies = [], []
    guide = trainer.policy.guide
    for row, real, length in zip(ids, mask.bool(), mask[:, -width:].sum(1).tolist(), strict=True):
        row = row[real]
        scores = model(row[None]).logits[0, len(row) - length - 1 : -1]
        scores = scores if scores.dtype == torch.float64 else scores.float()
        places = list(range(length))
        if guide and length:
            places, bits = guide.replay(row[-length:].tolist())
            scores = scores[places].masked_fill(~widen(bits, scores.shape[1], scores.device), -1e30)
        every = (scores / trainer.temperature).log_softmax(-1)
        found = every.gather(1, row[len(row) - length :][places][:, None])[:, 0]
        blank = found.new_zeros(width)
        log_probs.append(blank.index_put((torch.tensor(places, dtype=torch.long),), found))
        entropy = torch.zeros_like(blank)
        entropy[places] = -(every.exp() * every).sum(-1).detach()
        entropies.append(entropy)
    return torch.stack(log_probs), torch.stack(entropies), None


def gradient(model, value):
    """(weights,): of everything that is trained."""
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def apart(got, want):
    return float((got - want).norm() / want.norm())


def check(trainer, batch, absolute, relative):
    """The packed path against the plain one: log-probabilities, entropies, gradients."""
    trainer.model.train()
    weights = torch.randn(batch["completion_mask"].shape, generator=torch.Generator().manual_seed(3))
    found = []
    for way in (trainer._get_per_token_logps_and_entropies, partial(plain, trainer)):
        # The backward pass runs checkpointed blocks again: a step keeps the attention until it is done.
        packed = isinstance(way, MethodType)
        with shared_prefix_attention(trainer.policy.model) if packed else nullcontext():
            log_probs, entropies, _ = way(trainer.model, *joined(batch), compute_entropy=True)
            shown = log_probs * batch["completion_mask"]  # beyond the end of an answer nothing counts
            found.append((shown, entropies, gradient(trainer.model, (shown * weights).sum())))
    (fast, fast_entropy, fast_slope), (slow, slow_entropy, slow_slope) = found
    assert_close(fast.detach(), slow.detach(), rtol=0, atol=absolute)
    assert_close(fast_entropy, slow_entropy, rtol=0, atol=absolute * 10)
    assert apart(fast_slope, slow_slope) < relative
    assert slow_slope.norm() > 0 and slow.abs().max() > 1


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
@pytest.mark.parametrize("kind", SHARING)
def test_log_probs_and_gradients_equal_the_plain_path(tokenizer, tmp_path, monkeypatch, kind, guided):
    monkeypatch.setattr(head, "CHUNK", 7)
    trainer = trainer_for(exact_norms(tiny(kind, tokenizer)), tokenizer, tmp_path, guided)
    assert cannot_share(trainer.policy.model) is None
    check(trainer, batch_of(trainer, *groups_of(trainer)), 1e-9, 1e-9)


@pytest.mark.parametrize("kind", SHARING)
def test_they_are_equal_with_the_models_own_norms(tokenizer, tmp_path, kind):
    trainer = trainer_for(tiny(kind, tokenizer), tokenizer, tmp_path)
    check(trainer, batch_of(trainer, *groups_of(trainer)), 1e-5, 1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_models_own_attention_is_put_back(tokenizer, tmp_path, attention):
    model = exact_norms(tiny("qwen2-windows", tokenizer))
    model.set_attn_implementation(attention)
    trainer = trainer_for(model, tokenizer, tmp_path)
    exact = 1e-9 if attention == "sdpa" else 1e-5  # transformers' eager softmax is one of float32
    check(trainer, batch_of(trainer, *groups_of(trainer)), exact, exact)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
@pytest.mark.parametrize(
    ("lora", "checkpointing"), [(True, False), (False, True), (True, True)], ids=["lora", "checkpointing", "both"]
)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_adapters_and_gradient_checkpointing_change_nothing(tokenizer, tmp_path, kind, lora, checkpointing, guided):
    model = exact_norms(tiny(kind, tokenizer))
    trainer = trainer_for(model, tokenizer, tmp_path, guided, lora, gradient_checkpointing=checkpointing)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) == checkpointing
    batch = batch_of(trainer, *groups_of(trainer))
    check(trainer, batch, 1e-9, 1e-9)
    check_loss(trainer, batch, 1e-9, 1e-9)


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
def test_answers_that_are_masked_whole(tokenizer, tmp_path, guided):
    """A row of a group, all rows of a group, and a micro-batch with nothing else in it."""
    trainer = trainer_for(exact_norms(tiny("llama", tokenizer)), tokenizer, tmp_path, guided)
    prompts, answers = groups_of(trainer, empty=True)
    batch = batch_of(trainer, prompts, answers)
    check(trainer, batch, 1e-9, 1e-9)
    trainer.tokens_per_batch = 1
    check(trainer, batch, 1e-9, 1e-9)
    check_loss(trainer, batch, 1e-9, 1e-9)


@pytest.mark.parametrize("most", [1, 70, 4096])
def test_cut_into_any_parts(tokenizer, tmp_path, most):
    trainer = trainer_for(exact_norms(tiny("gemma3", tokenizer)), tokenizer, tmp_path, tokens_per_batch=most)
    check(trainer, batch_of(trainer, *groups_of(trainer)), 1e-9, 1e-9)


def test_prompts_that_share_nothing_and_a_single_group(tokenizer, tmp_path):
    trainer = trainer_for(exact_norms(tiny("mistral-window", tokenizer)), tokenizer, tmp_path)
    prompts, answers = groups_of(trainer)
    check(trainer, batch_of(trainer, [[9, *prompts[0]], *prompts[1:3]], answers[:3]), 1e-9, 1e-9)
    check(trainer, batch_of(trainer, prompts[1:2], answers[1:2]), 1e-9, 1e-9)
    check(trainer, batch_of(trainer, [prompts[0], prompts[0] + [9]], answers[:2]), 1e-9, 1e-9)  # one goes on as another


def whole_loss(trainer, batch):
    """TRL's loss of all rows at once, of plain log-probabilities; not cut, nothing left out."""
    own = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = partial(plain, trainer)
    try:
        return GRPOTrainer._compute_loss(trainer, trainer.model, batch)
    finally:
        trainer._get_per_token_logps_and_entropies = own


def step(trainer, batch):
    """The loss of one step; gradients are left in the weights."""
    own, trainer._prepare_inputs = trainer._prepare_inputs, lambda batch: batch
    try:
        return trainer.training_step(trainer.model, batch, None)
    finally:
        trainer._prepare_inputs = own


def check_loss(trainer, batch, absolute, relative):
    trainer.model.train()
    want = whole_loss(trainer, batch)
    slope = gradient(trainer.model, want)
    trainer.model.zero_grad()
    got = step(trainer, batch)
    left = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    assert_close(got.detach(), want.detach(), rtol=0, atol=absolute, check_dtype=False)
    assert apart(left, slope) < relative and slope.norm() > 0


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_micro_batches_make_the_loss_of_the_whole_batch(tokenizer, tmp_path, loss, beta, guided):
    """With a group without a gradient, old log-probabilities far enough away to clip, and a reference."""
    model = exact_norms(tiny("llama", tokenizer))
    trainer = trainer_for(model, tokenizer, tmp_path, guided, loss_type=loss, tokens_per_batch=1)
    trainer.beta = beta
    batch = batch_of(trainer, *groups_of(trainer))
    batch["advantages"][G : 2 * G] = 0
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        now = plain(trainer, trainer.model, *joined(batch))[0]
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        batch[name] = now + 0.3 * torch.randn(now.shape, generator=draw, dtype=now.dtype) * (now != 0)
    check_loss(trainer, batch, 1e-9, 1e-9)
    assert trainer.take_skipped_groups() == (0 if beta else 1)


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
def test_metrics_of_micro_batches_are_those_of_all_rows(tokenizer, tmp_path, guided):
    trainer = trainer_for(exact_norms(tiny("llama", tokenizer)), tokenizer, tmp_path, guided, tokens_per_batch=1)
    trainer.model.train()
    batch = batch_of(trainer, *groups_of(trainer))
    found = []
    for loss in (step, whole_loss):
        trainer._metrics["train"].clear()
        loss(trainer, batch)
        trainer._metrics["train"].pop("step_time", None)
        found.append(dict(trainer._metrics["train"]))
    assert found[0].keys() == found[1].keys() and "entropy" in found[0]
    for name, values in found[1].items():
        assert found[0][name] == pytest.approx(values, rel=1e-6, nan_ok=True), name


def test_equal_rewards_have_no_advantage_whatever_they_are():
    for size in range(2, 17):
        for value in (-0.5, 1.5, 1 / 3, 1.4, 1.5 - 2 / 4.5, 1.5 - 1 / 9):
            assert not group_advantages(torch.full((3 * size,), value), size, 1e-6).any(), (size, value)


# --- frozen blocks ------------------------------------------------------------------------------------------------


@contextmanager
def calls(module):
    """A list of whether each forward pass of a module was one with gradient."""
    seen = []
    hook = module.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("guided", [False, True], ids=["free", "guided"])
@pytest.mark.parametrize(
    ("checkpointing", "dtype"),
    [(False, torch.float64), (True, torch.float64), (False, torch.float32)],
    ids=["float64", "checkpointing", "float32"],
)
@pytest.mark.parametrize("kind", ["llama", "qwen2-windows", "gemma3"])
def test_the_update_from_the_rollouts_states_equals_the_plain_one(
    tokenizer, tmp_path, kind, checkpointing, dtype, guided
):
    model = exact_norms(tiny(kind, tokenizer, dtype))
    freeze_below(model, 1)
    trainer = trainer_for(
        model, tokenizer, tmp_path, guided, gradient_checkpointing=checkpointing, tokens_per_batch=150
    )
    assert trainer.frozen_blocks == 2
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i // G] for i in range(4 * G)])
    with calls(model.model.layers[0].self_attn) as below:
        step(trainer, batch)
    assert not below and model.model.layers[0].mlp.gate_proj.weight.grad is None
    exact = 1e-9 if dtype == torch.float64 else 1e-5
    check_loss(trainer, batch, max(exact, 1e-6), exact)
    trainer._row = batch["row"]
    check(trainer, batch, exact * 10, exact)


def test_rows_of_states_follow_the_rows_of_the_batch(tokenizer, tmp_path):
    """Groups in another order, some left out: each still starts from its own states."""
    model = exact_norms(tiny("llama", tokenizer))
    freeze_below(model, 2)
    trainer = trainer_for(model, tokenizer, tmp_path)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[i // G] for i in range(4 * G)])
    rows = torch.cat([torch.arange(g * G, g * G + G) for g in (3, 0, 2)])
    trainer._row = batch["row"][rows]
    check(trainer, {k: v[rows] if torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}, 1e-9, 1e-9)


# --- beside TRL's own trainer -------------------------------------------------------------------------------------


def same(completion_ids, **_):
    """As `reward`, but the answers to the second prompt of a step are all worth the same."""
    values = reward(completion_ids)
    return [0.25 if i // G == 1 else value for i, value in enumerate(values)]


def recorded(trainer):
    """Has `trainer` keep what its rollouts gave, each answer cut to a length of its own; and the list of it."""
    own, kept = trainer.rollout_func, []

    def rollout(prompts, trainer):
        with torch.random.fork_rng():
            made = own(prompts, trainer)
            ends = torch.randint(1, 13, (len(prompts),), generator=torch.Generator().manual_seed(len(kept))).tolist()
        for name in ("completion_ids", "logprobs", "env_mask"):
            made[name] = [values[:end] for values, end in zip(made[name], ends, strict=True)]
        if trainer._sampled is not None:
            trainer._sampled = made["logprobs"]
        kept.append(made)
        return made

    trainer.rollout_func = rollout
    return kept


def run(trainer):
    """Trains. The loss of each optimizer step, the norms of the gradients, the weights at the end."""
    losses, step = [], trainer.training_step

    def training_step(*args):
        loss = step(*args)
        losses.append(float(loss))
        return loss

    trainer.training_step = training_step
    trainer.train()
    parts = trainer.args.gradient_accumulation_steps
    sums = [sum(losses[i : i + parts]) for i in range(0, len(losses), parts)]
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    return sums, norms, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def both(tokenizer, folder, kind="llama", freeze=None, stock=None, dtype=torch.float64, **settings):
    """The same run by ours, in micro-batches of about two groups, and by TRL's: what `run` tells, and the trainers."""
    model = tiny(kind, tokenizer)
    model.save_pretrained(folder / "model")  # TRL loads the reference from there
    tokenizer.save_pretrained(folder / "model")
    trainers, results, kept = [], [], None
    for more in ({"tokens_per_batch": 100}, {"stock": True} | (stock or {})):
        model = exact_norms(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)).eval()
        if freeze:
            freeze_below(model, freeze)
        trainer = trainer_for(model, tokenizer, folder, rewards=same, prompts=16, **settings, **more)
        if trainer.ref_model is not None:
            exact_norms(trainer.ref_model)
        if kept:
            left = iter(copy.deepcopy(kept))
            trainer.rollout_func = lambda *_, left=left: next(left)
        else:
            kept = recorded(trainer)
        results.append(run(trainer))
        trainers.append(trainer)
    return results, trainers


def follow(results, loss, weights):
    (losses, norms, end), (stock_losses, stock_norms, stock_end) = results
    assert losses == pytest.approx(stock_losses, abs=loss, rel=loss) and len(losses) == 4
    assert norms == pytest.approx(stock_norms, rel=loss * 10)
    assert min(stock_norms) > 1e-3  # losses are means of advantages where all rows count alike: 0, but for a KL term
    assert apart(end, stock_end) < weights


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_a_run_follows_trls_own(tokenizer, tmp_path, loss, beta):
    """Loss by loss; a group of each step has no advantage, and ours is cut into micro-batches."""
    one = {"accumulation": 1} if loss == "bnpo" else {}  # TRL averages over micro-batches there, ours over all tokens
    results, (ours, _) = both(tokenizer, tmp_path, loss_type=loss, beta=beta, stock=one)
    follow(results, 1e-6, 1e-6)
    assert ours.take_skipped_groups() == (0 if beta else 4)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
def test_a_run_above_frozen_blocks_follows_trls_own(tokenizer, tmp_path, checkpointing):
    results, (ours, _) = both(tokenizer, tmp_path, "qwen2-windows", freeze=1, gradient_checkpointing=checkpointing)
    assert ours.frozen_blocks == 2
    follow(results, 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_run_with_adapters_follows_trls_own(tokenizer, tmp_path, dtype):
    """The reference is the model without them."""
    results, _ = both(tokenizer, tmp_path, "gemma3", lora=True, beta=0.2, dtype=dtype)
    follow(results, *((1e-6, 1e-6) if dtype == torch.float64 else (1e-4, 1e-3)))


def test_a_run_with_adapters_on_upper_blocks_follows_trls_own_and_runs_the_lower_ones_in_rollouts_alone(
    tokenizer, tmp_path, monkeypatch
):
    passes, packed = [], SharedPrefixGRPOTrainer._packed_log_probs

    def log_probs(self, model, *args):
        lower = self.policy.model.get_decoder().layers[1].self_attn
        hook = lower.register_forward_hook(lambda *_: passes.append("lower"))
        passes.append("reference" if not torch.is_grad_enabled() else "policy")
        try:
            return packed(self, model, *args)
        finally:
            hook.remove()

    monkeypatch.setattr(SharedPrefixGRPOTrainer, "_packed_log_probs", log_probs)
    results, (ours, _) = both(tokenizer, tmp_path, "qwen2-windows", lora="upper", beta=0.2)
    assert ours.frozen_blocks == 2 and set(passes) == {"reference", "policy"}
    follow(results, 1e-6, 1e-6)


def test_answers_used_twice_follow_trls_own_without_another_forward_pass(tokenizer, tmp_path, monkeypatch):
    passes, train = [], SharedPrefixGRPOTrainer._generate_and_score_completions

    def generate(self, inputs):
        own = self.rollout_func

        def rollout(*args):  # what happens in there is the rollout's
            before = len(seen)
            made = own(*args)
            del seen[before:]
            return made

        self.rollout_func = rollout
        with calls(self.policy.model.get_decoder()) as seen:
            made = train(self, inputs)
        self.rollout_func = own
        passes.append(len(seen))
        return made

    monkeypatch.setattr(SharedPrefixGRPOTrainer, "_generate_and_score_completions", generate)
    more = {"num_iterations": 2, "learning_rate": 2e-2}
    results, (_, stock) = both(tokenizer, tmp_path, **more)
    follow(results, 1e-5, 1e-5)
    assert passes == [0, 0]
    clipped = [line["clip_ratio/region_mean"] for line in stock.state.log_history if "clip_ratio/region_mean" in line]
    assert clipped[1] > 0 and clipped[0] == 0  # the ratios matter


# --- other dtypes and architectures -------------------------------------------------------------------------------


def test_bfloat16_is_close_to_plain_bfloat16(tokenizer, tmp_path):
    model = tiny("llama", tokenizer).to(torch.bfloat16)
    trainer = trainer_for(model, tokenizer, tmp_path, bf16=True)
    batch = batch_of(trainer, *groups_of(trainer))
    check(trainer, batch, 0.05, 0.05)
    trainer.train()


def test_only_the_last_micro_batch_ends_a_step(tokenizer, tmp_path):
    """DeepSpeed makes an optimizer step in every backward pass that accelerate does not tell to wait."""
    trainer = trainer_for(exact_norms(tiny("llama", tokenizer)), tokenizer, tmp_path, tokens_per_batch=1, max_steps=2)
    told, backward = [], trainer.accelerator.backward
    trainer.accelerator.backward = lambda loss, **more: (
        told.append(trainer.accelerator.sync_gradients),
        backward(loss, **more),
    )
    trainer.train()
    assert told.count(True) == 2 and told[-1] and len(told) > 4
    first = told.index(True)
    assert not any(told[:first]) and first > 0


def test_an_architecture_that_cannot_share_trains_all_the_same(tokenizer, tmp_path):
    model = tiny("gemma2", tokenizer, torch.float32)
    assert "attention" in cannot_share(model)
    trainer = trainer_for(model, tokenizer, tmp_path, tokens_per_batch=1, max_steps=1, prompts=8)
    before = [weight.clone() for weight in model.parameters()]
    with calls(model.model) as passes:
        trainer.train()
    assert passes.count(True) > 1 and trainer.frozen_blocks == 0
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    check_loss(trainer, batch_of(trainer, *groups_of(trainer)), 1e-5, 1e-4)


@pytest.mark.slow
def test_the_real_model_equals_its_plain_path(tmp_path):
    model, tokenizer = load_policy("smollm2-135m")
    trainer = trainer_for(model, tokenizer, tmp_path, temperature=1.0)
    text = "The user likes slow, quiet films about families, and rated these: " + "Fargo 4, Heat 3, Alien 5; " * 20
    prompts = [tokenizer.encode(text)[:148] + tokenizer.encode(end) for end in (" Rate Tokyo Story.", " Rate Jaws.")]
    answers = [[c.tokens for c in group] for group in trainer.policy.answer(prompts, G, temperature=1.0, seed=0)]
    answers = [[a[:n] for a, n in zip(group, (12, 1, 7), strict=True)] for group in answers]
    check(trainer, batch_of(trainer, prompts, answers), 1e-4, 1e-3)
