"""What a step costs on paper: operations, bytes and seconds, each by a formula that is stated here.

Symbols: a step has N groups; a group is one prompt of P tokens and G answers of R tokens. L blocks of hidden size D
with H query and K key/value heads of size d and a gated feed-forward part of width F; V tokens in the vocabulary; b
bytes a number. A multiplication and an addition are two operations.

`shared` is this package's update, in which a prompt is computed once for its G answers; `stock` is the usual one (TRL,
verl), in which every answer stands behind a copy of its prompt. docs/speed.md derives what that saves.
"""

import math
from dataclasses import dataclass
from typing import Literal

from reczero.recipes import Recipe

from .machines import Machine
from .shapes import ModelShape

EngineName = Literal["local", "verl"]
CHUNK = 512  # places whose logits exist at a time in the shared update (reczero.rollout.head)
BLOCKWISE = 2.5  # backward of blockwise attention / forward: five products for two (FlashAttention-2, section 3.1)

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

    train_layers: the uppermost blocks that learn, None for the whole model. rank: of LoRA on all linear layers of those
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
    """Of LoRA the adapters of the blocks that learn; of upper blocks those and the last norm; else all."""
    if work.rank:
        return shape.lora(work.rank) * min(work.train_layers or shape.layers, shape.layers) // shape.layers
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
