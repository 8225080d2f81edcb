"""What a recipe will need: memory, arithmetic, time and money, on paper, from a model that is stated here.

Symbols: a step has N groups; a group is one prompt of P tokens and G answers of R tokens. L blocks of hidden size D
with H query and K key/value heads of size d and a gated feed-forward part of width F; V tokens in the vocabulary; b
bytes a number. A multiplication and an addition are two operations.

`shared` is this package's update, in which a prompt is computed once for its G answers; `stock` is the usual one (TRL,
verl), in which every answer stands behind a copy of its prompt. docs/speed.md derives what that saves.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reczero.errors import UserError
from reczero.recipes import Recipe

from .machines import GB, Machine

EngineName = Literal["local", "verl"]
CHUNK = 512  # places whose logits exist at a time in the shared update (reczero.rollout.head)
BLOCKWISE = 2.5  # backward of blockwise attention / forward: five products for two (FlashAttention-2, section 3.1)

# --- the model's sizes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder as in Llama, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, gated feed-forward."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int
    tied: bool = False  # the vocabulary head is the embedding
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def block_linear(self) -> int:
        """W: weights of the linear layers of a block, without biases: q, k, v, o and three of the feed-forward part."""
        return self.hidden * (2 * self.q_width + 2 * self.kv_width + 3 * self.intermediate)

    @property
    def block_parameters(self) -> int:
        biases = self.qkv_bias * (self.q_width + 2 * self.kv_width) + self.o_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        return self.block_linear + biases + 2 * self.hidden + self.qk_norm * 2 * self.head_dim

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.block_parameters + self.hidden + self.head * (1 if self.tied else 2)

    def lora(self, rank: int) -> int:
        """Weights of adapters on all linear layers of the blocks: r (in + out) each."""
        d, q, k, f = self.hidden, self.q_width, self.kv_width, self.intermediate
        return self.layers * rank * ((d + q) + 2 * (d + k) + (q + d) + 3 * (d + f))

    def kv_bytes(self, width: int) -> int:
        """Keys and values of one token, all layers, `width` bytes a number."""
        return 2 * self.layers * self.kv_width * width

    @classmethod
    def from_config(cls, config: Any) -> "ModelShape":
        """Of a transformers config. Raises UserError where its architecture is none of those above."""
        if config.model_type not in DENSE:
            raise UserError(f"model: plans know {', '.join(DENSE)}, not {config.model_type}; name a --model of those.")
        attention_bias = bool(getattr(config, "attention_bias", False))
        return cls(
            layers=config.num_hidden_layers, hidden=config.hidden_size, intermediate=config.intermediate_size,
            heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, vocab=config.vocab_size,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            tied=config.tie_word_embeddings, qkv_bias=attention_bias or config.model_type == "qwen2",
            o_bias=attention_bias, mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=config.model_type == "qwen3",
        )  # fmt: skip


DENSE = ("llama", "mistral", "qwen2", "qwen3")
# From the models' published config.json, so that a plan needs no network.
_QWEN_7B = ModelShape(28, 3584, 18944, 28, 4, 152064, 128, qkv_bias=True)
SHAPES = {
    "smollm2-135m": ModelShape(30, 576, 1536, 9, 3, 49152, 64, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(28, 1536, 8960, 12, 2, 151936, 128, tied=True, qkv_bias=True),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct-1M": _QWEN_7B,
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(64, 5120, 27648, 40, 8, 152064, 128, qkv_bias=True),
    "Qwen/Qwen2.5-72B-Instruct": ModelShape(80, 8192, 29568, 64, 8, 152064, 128, qkv_bias=True),
}


def shape_of(name: str) -> ModelShape:
    """The sizes of a model: of `SHAPES` without a network, else by its config in a folder or on the hub.

    Raises UserError.
    """
    if name in SHAPES:
        return SHAPES[name]
    from transformers import AutoConfig

    from reczero.models import quiet, resolve_model

    place = resolve_model(name)
    if isinstance(place, Path) and (place / "adapter_config.json").is_file():
        raise UserError(f"model {name}: an adapter; name the model that it stands on.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        known = ", ".join(SHAPES)
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model {name}: its config can't be had ({reason}); give a folder, or one of {known}."
        ) from error
    return ModelShape.from_config(config.get_text_config())


# --- engines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """How an engine keeps weights and computes. Bytes are those of one parameter, before they are divided."""

    name: EngineName
    shared: bool  # the update computes a prompt once
    weights: int
    gradient: int
    optimizer: int  # both moments of AdamW, and DeepSpeed's float32 copy of the weights
    compute: int  # bytes of a number in forward and backward passes, and in the rollout
    shards: int  # GPUs that the weights are divided by
    state_shards: int  # and those that gradients and optimizer are
    buckets: bool  # data parallel: torch's DDP keeps gradients a second time, in buckets to be reduced
    vllm: float  # share of the memory that vLLM may take; 0: rollouts use the trained weights themselves
    sleeps: bool  # vLLM gives its memory back during the update
    scoring: int  # further forward passes over all answers: the old policy's, with a KL term the reference's
    cast: int = 0  # autocast's copies of whole weights, which last as long as a pass

    @property
    def unit(self) -> str:
        """What is whole on a GPU."""
        return "group" if self.shared else "answer"


def engine_of(name: EngineName, recipe: Recipe, gpus: int, preset: str | None = None) -> Engine:
    """local: this package on TRL, by a preset of `reczero launch accelerate`. verl: FSDP over all GPUs, fp32 weights,
    vLLM at half of the memory.

    Weights that are trained are fp32 and products of the recipe's dtype; under DeepSpeed the fp32 copy is with the
    optimizer. Frozen weights (LoRA) are of the recipe's dtype.
    """
    b, kl = (4 if recipe.model.dtype == "float32" else 2), int(recipe.training.kl > 0)
    if name == "verl":
        return Engine("verl", False, 4, 4, 8, 2, gpus, gpus, False, 0.5, True, 1 + kl)
    preset = preset or default_preset(gpus)
    vllm = 0.3 if recipe.rollout.engine == "vllm" else 0.0  # TRL's default beside training
    mixed = b == 2 and not recipe.model.lora
    shards = gpus if preset in ("zero3", "fsdp") else 1
    states = 1 if preset == "ddp" else gpus
    if preset.startswith("zero") and mixed:
        return Engine("local", True, 2, 2, 12, 2, shards, states, False, vllm, False, kl)
    kept = 4 if mixed else b
    cast = 2 if mixed and shards == 1 else 0
    return Engine("local", True, kept, kept, 2 * kept, b, shards, states, gpus > states, vllm, False, kl, cast)


def default_preset(gpus: int) -> str:
    """As `reczero launch accelerate` has it; one GPU has nothing to divide."""
    return "zero2" if gpus > 1 else "ddp"


# --- what is to be done -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A step of GRPO: N groups of G answers of R tokens to prompts of P, and what of the model learns.

    train_layers: the uppermost blocks that learn, None for the whole model. rank: of LoRA on all linear layers of the
    blocks, None for none. tokens_per_batch: as in a recipe: the tokens of a micro-batch, or one group (stock: one row).
    """

    groups: int
    group_size: int
    prompt: int
    answer: int
    tokens_per_batch: int = 4096
    train_layers: int | None = None
    rank: int | None = None
    checkpointing: bool = False

    @classmethod
    def of(cls, recipe: Recipe, prompt: int, answer: int) -> "Work":
        m, t = recipe.model, recipe.training
        return cls(
            t.groups_per_step, recipe.rollout.group_size, prompt, answer, t.tokens_per_batch, m.train_layers,
            m.lora.rank if m.lora else None, m.gradient_checkpointing,
        )  # fmt: skip

    def tokens(self, shared: bool) -> int:
        """Of what is whole on a GPU: a group (P + G R), or a row (P + R)."""
        return self.prompt + (self.group_size if shared else 1) * self.answer

    def pairs(self, shared: bool) -> float:
        """Pairs of a token and one that it sees, itself included, in a group or a row."""
        p, r = self.prompt, self.answer
        each = r * p + r * (r + 1) / 2
        return p * (p + 1) / 2 + (self.group_size if shared else 1) * each


# --- arithmetic -------------------------------------------------------------------------------------------------------


def block_flops(shape: ModelShape, tokens: float, pairs: float) -> float:
    """A forward pass through one block: 2 W for every token, 4 H d for every pair of tokens (scores, and values)."""
    return 2 * shape.block_linear * tokens + 4 * shape.q_width * pairs


def update_flops(shape: ModelShape, work: Work, shared: bool, scoring: int = 0, kept_states: bool = True) -> float:
    """Operations of forward and backward passes for one group (shared) or one row (stock), as they are executed.

    Linear layers: forward 1, backward 2 (gradients of inputs and of weights; of frozen weights under LoRA only the
    former), and once more forward with checkpointing (but for the last product of a block, whose result no one needs).
    Attention: backward 2.5. The head, D V, runs on answers alone: where it learns, the shared update makes logits a
    second time (4 passes instead of 3); where it is frozen, 2.
    Blocks below those that learn have no backward pass, and no forward pass either where the rollout kept what they
    made (`kept_states`: shared updates with rollouts of our own). scoring: further forward passes.
    """
    tokens, pairs = work.tokens(shared), work.pairs(shared)
    answers = work.answer * (work.group_size if shared else 1)
    learns = min(work.train_layers or shape.layers, shape.layers)
    linear, attention = 2 * shape.block_linear * tokens, 4 * shape.q_width * pairs
    again = 2 if work.checkpointing else 1
    block = linear * (again + (1 if work.rank else 2)) + attention * (again + BLOCKWISE)
    if work.checkpointing:
        block -= 2 * shape.hidden * shape.intermediate * tokens
    if work.rank:  # 2 (r in + r out) a token forward, twice that backward
        block += 2 * shape.lora(work.rank) / shape.layers * tokens * (again + 2)
    below = shape.layers - learns
    skipped = shared and kept_states
    head = 2 * shape.head * answers
    frozen_head = bool(work.rank or work.train_layers)
    total = learns * block + (0 if skipped else below * (linear + attention))
    total += head * (2 if frozen_head else 4 if shared else 3)
    return total + scoring * (shape.layers * (linear + attention) + head)


# --- memory -----------------------------------------------------------------------------------------------------------


def activation_bytes(shape: ModelShape, work: Work, shared: bool, b: int) -> tuple[float, float]:
    """Bytes kept for the backward pass of a group or a row: (all of it, of which for one block without checkpointing).

    Each block and token: two norms that keep their input in fp32, its scale, and two results (4 D + 4 + 2 b D each);
    queries, the attention's result twice (3 b H d), keys and values (2 b K d), log-sums (4 H), and four times the
    feed-forward width (4 b F). The shared update also keeps, of each answer, the keys and values it sees, P + R tokens,
    and its mask. With checkpointing: the input of every block (b D), and all of one block while it is run again.
    """
    tokens, d = work.tokens(shared), shape.hidden
    norm = (4 + 2 * b) * d + 4
    per_token = 2 * norm + b * (3 * shape.q_width + 2 * shape.kv_width) + 4 * shape.heads + 4 * b * shape.intermediate
    block = float(tokens * per_token)
    if shared:
        seen = work.prompt + work.answer
        block += 2 * b * shape.kv_width * work.group_size * seen + b * work.answer * seen
    if work.rank:  # what comes out of the seven first halves of the adapters
        block += 7 * b * work.rank * tokens
    learns = min(work.train_layers or shape.layers, shape.layers)
    answers = work.answer * (work.group_size if shared else 1)
    final = (norm - b * d) * tokens + b * d * answers  # the last norm, and what of it enters the head
    if work.checkpointing:
        return learns * b * d * tokens + final, block
    return learns * block + final, 0.0


def trained_parameters(shape: ModelShape, work: Work) -> int:
    """Of LoRA the adapters; of upper blocks those and the last norm; else all."""
    if work.rank:
        return shape.lora(work.rank)
    if work.train_layers:
        return min(work.train_layers, shape.layers) * shape.block_parameters + shape.hidden
    return shape.parameters


@dataclass(frozen=True)
class Memory:
    """Bytes on the busiest GPU. `rollout_copy` and `kv`: vLLM's or ours; `update` and `rollout`: the two peaks."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float  # whole layers of divided weights and a layer's gradients while they are used; autocast's copies
    activations: float  # of one micro-batch
    logits: float
    rollout_copy: float
    kv: float
    packed: float
    fixed: float
    update: float
    rollout: float

    @property
    def peak(self) -> float:
        return max(self.update, self.rollout)


def memory_of(
    shape: ModelShape, work: Work, machine: Machine, engine: Engine, units: int, prompts: int, answers: int,
    micro: int, tp: int,
) -> Memory:  # fmt: skip
    """units: groups or rows of an update on this GPU, `micro` of them in a micro-batch; prompts, answers: in a rollout.

    Update: weights, optimizer, and the larger of all gradients and, when backward begins, activations with the
    gradients of earlier micro-batches. Rollout: no gradients; keys and values of P + R for every answer, of P once a
    prompt where it is ours. Adapters are kept in fp32, as PEFT does.
    """
    b, learns = engine.compute, trained_parameters(shape, work)
    each = shape.parameters / engine.shards
    if work.rank:
        weights = each * engine.weights + 4 * learns / engine.shards
        gradients, optimizer = 4 * learns / engine.state_shards, 8 * learns / engine.state_shards
    else:
        weights = each * engine.weights
        gradients, optimizer = (learns * size / engine.state_shards for size in (engine.gradient, engine.optimizer))
    block = shape.block_parameters
    gathered = float(shape.parameters * engine.cast)
    if engine.shards > 1:  # a block and the next one, what stands beside the blocks, and the gradients of one block
        gathered = (block + shape.parameters - (shape.layers - 1) * block) * b + block * engine.gradient
    whole, of_one_block = activation_bytes(shape, work, engine.shared, b)
    activations = machine.activation_factor * (micro * (whole + of_one_block))
    if engine.shared:  # three tables: logits, their exponentials, and what is made of them
        logits = 3 * 4.0 * shape.vocab * min(CHUNK, micro * work.group_size * work.answer)
    else:  # of all places, in the dtype of the pass, with their gradient
        logits = 2.0 * b * shape.vocab * micro * work.tokens(False)
    packed = 4.0 * (shape.layers * shape.block_linear + shape.head) if machine.packed else 0.0
    state = weights + optimizer + packed + machine.fixed + (gradients if engine.buckets else 0)
    copy = shape.parameters * b / tp if engine.vllm else 0.0
    if engine.vllm:
        kv = max(0.0, engine.vllm * machine.memory - copy)
        rollout = state + engine.vllm * machine.memory
    else:
        kv = shape.kv_bytes(b) * (prompts * work.prompt + 1.5 * answers * work.answer)  # our memory grows by halves
        prefill = b * prompts * work.prompt * (4 * shape.hidden + 3 * shape.intermediate)
        rollout = state + kv + prefill
    earlier = gradients if units > micro else 0.0
    update = state + gathered + max(activations + logits + earlier, gradients)
    if engine.shared and work.train_layers and not engine.vllm:  # what enters the lowest block that learns is kept
        update += b * shape.hidden * units * work.tokens(True)
    update += 0 if engine.sleeps else engine.vllm * machine.memory
    return Memory(
        weights, gradients, optimizer, gathered, activations, logits, copy, kv, packed, machine.fixed, update, rollout
    )  # fmt: skip


# --- time -------------------------------------------------------------------------------------------------------------


def collective_seconds(size: float, members: int, per_node: int, machine: Machine) -> float:
    """All-gather or reduce-scatter of `size` bytes over `members` GPUs.

    By rings (NCCL): each GPU takes in (m - 1) / m of it over the link in its node; of several nodes, each node takes in
    (n - 1) / n of it through the network of all its GPUs. The slower of the two.
    """
    if members <= 1:
        return 0.0
    nodes = math.ceil(members / per_node)
    inside = size * (members - 1) / members / machine.link if per_node > 1 else 0.0
    between = size * (nodes - 1) / nodes / (min(members, per_node) * machine.network)
    return max(inside, between) / machine.comm_share


def update_seconds(
    shape: ModelShape, work: Work, machine: Machine, engine: Engine, units: int, micro: int, gpus: int, per_node: int,
    shared: bool | None = None,
) -> dict[str, float]:  # fmt: skip
    """Seconds of one update on the busiest GPU, with `units` groups or rows, `micro` at a time.

    Divided weights are gathered for each forward and each backward pass of a micro-batch, and gradients reduced; that
    goes on beside the arithmetic, so the longer of the two counts. Whole weights: gradients are reduced once a step, or
    reduced and the new weights gathered. AdamW reads and writes weights, gradients and both moments: 7 numbers for each
    parameter.
    """
    shared = engine.shared if shared is None else shared
    rate = machine.flops * machine.update_share
    kept = engine.vllm == 0
    compute = units * update_flops(shape, work, shared, engine.scoring, kept) / rate
    batches = math.ceil(units / micro) if units else 0
    size, learns = shape.parameters * engine.compute, trained_parameters(shape, work)
    reduced = learns * engine.gradient
    if engine.shards > 1:
        gathers = 2 + engine.scoring
        communication = batches * (
            gathers * collective_seconds(size, engine.shards, per_node, machine)
            + collective_seconds(reduced, engine.shards, per_node, machine)
        )
        communication += 2 * collective_seconds(reduced / engine.shards, gpus // engine.shards, 1, machine)
    else:
        communication = 2 * collective_seconds(reduced, gpus, per_node, machine)
    state = 4 if work.rank or engine.optimizer >= 8 else engine.weights  # bytes of a number of the optimizer
    optimizer = 7 * state * learns / engine.state_shards / (machine.bandwidth * machine.decode_share)
    return {"compute": compute, "communication": communication, "optimizer": optimizer,
            "update": max(compute, communication) + optimizer}  # fmt: skip


def rollout_seconds(
    shape: ModelShape, machine: Machine, prompts: int, answers: int, prompt: int, answer: int, b: int, tp: int = 1,
    room: float | None = None, once: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Seconds to answer `prompts`, `answers` in all, on `tp` GPUs that divide the weights.

    Prompts: a forward pass each, bound by arithmetic. Then R steps. Each reads all weights and the keys and values of
    all answers (a prompt's once for all its answers where `once`), and computes 2 (W + D V) for each answer and 4 H d
    for each pair; on a GPU both at once (the longer counts), on a CPU one after the other. room: bytes for keys and
    values; answers that do not fit wait for the next round.
    """
    if not answers:
        return {"prefill": 0.0, "decode": 0.0, "rollout": 0.0, "together": 0}
    width = shape.kv_bytes(b) / tp
    own = width * (answer + (prompt * prompts / answers))
    together = answers if room is None else min(answers, max(1, int(room / own)))
    rounds = math.ceil(answers / together)
    rate = machine.flops * machine.update_share * tp
    prefill = prompts * shape.layers * block_flops(shape, prompt, prompt * (prompt + 1) / 2) / rate
    seen = answers * answer / 2 + prompt * (prompts if once else answers)  # tokens whose keys a step reads, on average
    weights = shape.layers * shape.block_linear + shape.head
    reading = (rounds * b * weights / tp + width * seen) / (machine.bandwidth * machine.decode_share)
    flops = answers * (2 * weights + 4 * shape.q_width * shape.layers * (prompt + answer / 2))
    arithmetic = flops / rate
    step = max(reading, arithmetic) if machine.overlap else reading + arithmetic
    decode = answer * (step + rounds * machine.step_seconds)
    return {"prefill": prefill, "decode": decode, "rollout": prefill + decode, "together": together}


# --- a plan -----------------------------------------------------------------------------------------------------------


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
