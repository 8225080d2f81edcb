"""GRPO on TRL, with what TRL lacks for this task. What differs from `trl.GRPOTrainer` 1.16:

1. Rollouts compute every prompt once for its whole group (`reczero.rollout`), and may be guided by the template.
2. The update computes every prompt once too: groups are packed in one row without padding, the answers of a group share
   its prompt, prompts share what they all begin with, and the head sees only the tokens that are trained.
3. Only tokens that the policy chose are trained; log-probabilities are under the guidance they were sampled with.
4. Advantages are (R − mean) / (std + 1e-6) in the group, as in the code derived from the authors' release (TRL: 1e-4).
5. Groups stay whole: rows are not shuffled inside a generation batch (groups already come in random order).
6. A training batch is cut into micro-batches by its tokens, here and not by gradient accumulation; the gradient is that
   of the whole batch.
7. A group whose rewards are all equal has no gradient: with no KL term it costs no forward or backward pass.
8. Where blocks at the bottom are frozen, the update starts from what they made of each token in the rollout.
9. Where answers are used for more than one optimizer step, the old policy's log-probabilities are those of the rollout.
10. With `rating_rewards`, ratings are weighed instead of drawn (`weighed.py`).

Shapes: B rows = prompts × G, C tokens in the longest answer of the batch, V the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from reczero.errors import UserError
from reczero.rollout import Policy
from reczero.rollout.decoder import common_beginning
from reczero.rollout.frozen import States, above, frozen_blocks
from reczero.rollout.head import replaced_head, token_log_probs
from reczero.rollout.packed import packed_weights
from reczero.rollout.shared_prefix import Tree, cannot_share, shared_prefix_attention

from .checkpoints import AtomicCheckpoints
from .sharded import is_sharded
from .weighed import Weighed


def group_advantages(rewards: Tensor, group_size: int, epsilon: float) -> Tensor:
    """(B,) rewards, `group_size` rows a group -> (B,): (R − mean) / (std + epsilon), std with Bessel's correction."""
    groups = rewards.double().view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + epsilon)).flatten().to(rewards.dtype)


def require_weighing(policy: Policy) -> None:
    """Raises UserError where ratings can't be weighed instead of drawn."""
    if cannot_share(policy.model) or not policy.ratings.single:
        raise UserError(
            "training.rating: expected needs a model that can share prompts and a scale whose ratings differ in "
            "their first token, such as 1 to 5; choose sampled."
        )


def in_batches(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Which things, of these sizes and in their order, go together: no more than `most` in all, or a single one."""
    batches: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not batches or size > room:
            batches.append([])
            room = most
        batches[-1].append(i)
        room -= size
    return batches


@contextmanager
def _uneven_rows(accelerator) -> Iterator[None]:
    """Inside, processes may gather unequal numbers of rows, as TRL's metrics do: what is missing is NaN."""
    gather = accelerator.gather
    accelerator.gather = lambda x: gather(accelerator.pad_across_processes(x, pad_index=float("nan")))
    try:
        yield
    finally:
        accelerator.gather = gather


@contextmanager
def _more_to_come(accelerator, model) -> Iterator[None]:
    """Inside, a backward pass adds to the gradients and no more: no exchange between processes, no optimizer step."""
    accelerator.gradient_state._set_sync_gradients(False)  # what accelerate tells DeepSpeed, which would make a step
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        accelerator.gradient_state._set_sync_gradients(True)


def _counted(inputs: dict) -> Tensor:
    """(B, C): 1 where a token counts in the loss."""
    return inputs["completion_mask"] * inputs.get("tool_mask", 1)


def _pooled(name: str, values: Sequence[float], weights: Sequence[float]) -> float:
    """One value of a metric for all micro-batches, by their tokens."""
    if name.endswith(("_min", "_max")):
        return min(values) if name.endswith("_min") else max(values)
    return float(np.average(values, weights=weights))


class SharedPrefixGRPOTrainer(AtomicCheckpoints, GRPOTrainer):
    """`policy` shares its model with the trainer; the other arguments are TRL's.

    tokens_per_batch: the most tokens in one forward and backward pass (a single group may be larger). Give the rows of
    a whole optimizer step as `per_device_train_batch_size`, and accumulate no gradients. rating_rewards: what a
    well-formed answer to a training row earns with each rating of the scale; then ratings are weighed, not drawn.
    """

    def __init__(
        self, *, policy: Policy, advantage_epsilon: float = 1e-6, tokens_per_batch: int = 4096,
        rating_rewards: Callable[[dict[str, Any]], list[float]] | None = None, **kwargs: Any,
    ):  # fmt: skip
        self.policy, self.rating_rewards = policy, rating_rewards
        self._weighed: Weighed | None = None  # the ratings of the last rollout, where they are weighed
        self._divergences: list[Tensor] = []  # of those of the batch under way, from the reference policy
        self.advantage_epsilon, self.tokens_per_batch = advantage_epsilon, tokens_per_batch
        self.skipped_groups = 0
        self._rewards: Tensor | None = None
        self._buffered_inputs: list | None = None
        self._states: States | None = None  # of the last rollout, where blocks are frozen
        self._row: Tensor | None = None  # which of its answers the rows under way are
        self._sampled: list[list[float]] | None = None  # its log-probabilities, while the old policy's are asked for
        args = kwargs["args"]
        if args.entropy_coef or args.use_adaptive_entropy or args.top_entropy_quantile < 1:
            raise ValueError("entropies have no gradient here: entropy_coef and top_entropy_quantile are not supported")
        self._shares = cannot_share(policy.model) is None
        own = self._shares and not args.use_vllm
        if rating_rewards:
            require_weighing(policy)
        if rating_rewards and args.num_iterations * args.steps_per_generation > args.gradient_accumulation_steps:
            raise ValueError("rating_rewards: answers can be used for one optimizer step only")
        super().__init__(model=policy.model, rollout_func=_rollout if own else None, **kwargs)
        if own and is_sharded(self.accelerator):
            raise UserError(
                "rollout.engine: weights in shards (FSDP, ZeRO-3) can't answer here; choose vllm, or zero2."
            )
        # PEFT may have wrapped it: from now on it is the trained model that answers.
        policy.model = self.accelerator.unwrap_model(self.model)
        self.frozen_blocks = frozen_blocks(policy.model) if own else 0

    # --- rollout and advantages -----------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)  # of all processes
        return by_function

    def _generate_and_score_completions(self, inputs):
        self._states = self._sampled = self._weighed = None
        output = super()._generate_and_score_completions(inputs)
        group = self.num_generations if self.model.training else self.num_generations_eval
        advantages = group_advantages(self._rewards, group, self.advantage_epsilon)
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)]
        if (weighed := self._weighed) is not None:
            given = self._rewards[start : start + len(inputs)]
            by_rating = torch.tensor([self.rating_rewards(row) for row in inputs], device=given.device)
            width = output["completion_ids"].shape[1]
            output["advantages"] = weighed.advantages(given, by_rating, group, self.advantage_epsilon, width)
            if weighed.reference is not None:  # no second KL term there: TRL's sees a policy that is the reference
                rows = (weighed.at >= 0).nonzero()[:, 0]
                output["ref_per_token_logps"][rows, weighed.at[rows]] = weighed.drawn[rows]
        if self._states is not None or weighed is not None:
            output["row"] = torch.arange(len(inputs), device=advantages.device)  # which answer of `_states` each row is
        return output

    def _prepare_inputs(self, generation_batch):
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, parts)
        return self._buffered_inputs[self._step % parts]

    def take_skipped_groups(self) -> int:
        """Groups without a gradient since the last call."""
        count, self.skipped_groups = self.skipped_groups, 0
        return count

    # --- update ---------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        with ExitStack() as stack:
            if self._shares:  # until the backward pass is done: checkpointed blocks are run again in it
                stack.enter_context(packed_weights(self.policy.model))
                stack.enter_context(shared_prefix_attention(self.policy.model))
            return super().training_step(model, inputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        """The loss of all rows; the gradient of all but the last micro-batch is made on the way."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        cut = self._micro_batches(inputs)
        if not cut:
            # A true zero that reaches every trained weight, so that the optimizer and other processes go on as usual.
            return sum(p.flatten()[:1].sum() * 0 for p in model.parameters() if p.requires_grad)
        before = {name: len(values) for name, values in self._metrics["train"].items()}
        weights, total = [], 0.0
        for i, rows in enumerate(cut):
            micro = {k: v[rows] if torch.is_tensor(v) and v.dim() else v for k, v in inputs.items()}
            share = self._share(micro, inputs)
            weights.append(_counted(micro).sum().item())
            last = i == len(cut) - 1
            with _uneven_rows(self.accelerator), nullcontext() if last else _more_to_come(self.accelerator, model):
                self._row = micro.get("row")
                loss = super()._compute_loss(model, micro) * share
                if not last:
                    self.accelerator.backward(loss)
                    total += loss.detach()
        for name, values in self._metrics["train"].items():  # TRL logs a value of each micro-batch: one of all of them
            new = values[before.get(name, 0) :]
            if len(new) == len(cut):
                values[before.get(name, 0) :] = [_pooled(name, new, weights)]
        self._row = None
        if self._weighed is not None and self.beta:
            found = torch.cat([loss.new_zeros(0), *self._divergences])
            self._divergences = []
            of_all = self.accelerator.gather(torch.stack([found.sum(), found.new_tensor(len(found))])[None]).sum(0)
            self._metrics["train"]["rating_kl"].append((of_all[0] / of_all[1].clamp(min=1)).item())
        return loss + total

    def _share(self, micro: dict, whole: dict) -> float:
        """What a micro-batch's loss counts in that of all rows, by how TRL's loss types average."""
        if self.loss_type in ("dapo", "cispo", "vespo"):  # divided by the tokens of the whole batch already
            return 1.0
        if self.loss_type == "bnpo":
            return _counted(micro).sum().item() / max(1, _counted(whole).sum().item())
        return len(micro["advantages"]) / len(whole["advantages"])

    def _micro_batches(self, inputs: dict) -> list[Tensor]:
        """The rows of each micro-batch: whole groups with a gradient, at most `tokens_per_batch` tokens together.

        Other processes wait for each other in every micro-batch, so all make as many; one with too few groups takes
        some without a gradient.
        """
        group = self.num_generations
        rows = torch.arange(len(inputs["advantages"]), device=inputs["advantages"].device).view(-1, group)
        useful = inputs["advantages"].view(len(rows), -1).bool().any(1).tolist()
        if self.beta:
            useful = [True] * len(useful)
        counted = _counted(inputs).sum(1).view(-1, group).any(1).tolist()
        useful = [u and c for u, c in zip(useful, counted, strict=True)]
        self.skipped_groups += useful.count(False)
        answers = inputs["completion_mask"].sum(1).view(-1, group).sum(1)
        prompts = inputs["prompt_mask"].sum(1).view(-1, group)[:, 0] * (1 if self._shares else group)
        sizes = (answers + prompts).tolist()
        order = sorted(range(len(useful)), key=lambda g: not useful[g])  # those with a gradient first
        taken = order[: useful.count(True)]
        cut = [[taken[k] for k in part] for part in in_batches([sizes[g] for g in taken], self.tokens_per_batch)]
        if self.accelerator.num_processes > 1:
            count = int(self.accelerator.gather(torch.tensor([len(cut)], device=rows.device)).max())
            spare = order[len(taken) :]
            while len(cut) < count:  # there are as many groups here as anywhere
                cut.append([spare.pop(0)] if spare else [max(cut, key=len).pop()])
        return [rows[groups].flatten() for groups in cut]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """Log-probabilities and entropies (B, C); 0 where the template forced a token or nothing stands."""
        if not self._shares:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        if self._sampled is not None and not torch.is_grad_enabled():
            sampled, self._sampled = self._sampled, None
            padded = [row + [0.0] * (logits_to_keep - len(row)) for row in sampled]
            return torch.tensor(padded, device=input_ids.device), None, None
        prompts, answers = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
        prompt_lengths = attention_mask[:, :-logits_to_keep].sum(1).tolist()
        lengths = attention_mask[:, -logits_to_keep:].sum(1).tolist()
        starts = [i for i in range(len(prompts)) if i == 0 or not torch.equal(prompts[i], prompts[i - 1])]
        groups, rows = [], []
        for i, end in zip(starts, [*starts[1:], len(prompts)], strict=True):
            prompt = prompts[i, prompts.shape[1] - prompt_lengths[i] :].tolist()
            groups.append((prompt, [row[:n].tolist() for row, n in zip(answers[i:end], lengths[i:end], strict=True)]))
            rows.append(range(i, end))
        sizes = [len(prompt) + sum(map(len, answers)) for prompt, answers in groups]
        parts = [
            self._packed_log_probs(model, [groups[g] for g in part], logits_to_keep, [rows[g] for g in part])
            for part in in_batches(sizes, self.tokens_per_batch)
        ]
        log_probs, entropies = (torch.cat(x) for x in zip(*parts, strict=True))
        return log_probs, entropies if compute_entropy else None, None

    def _packed_log_probs(
        self, model, groups: list[tuple[list[int], list[list[int]]]], width: int, rows: list[range]
    ) -> tuple[Tensor, Tensor]:
        """Groups (a prompt and its answers) in one packed row -> log-probabilities and entropies (answers, width).

        rows: which rows of the batch the answers of a group are.
        """
        guide, device = self.policy.guide, self.accelerator.device
        common = common_beginning([prompt for prompt, _ in groups])
        segments = [groups[0][0][:common]] if common else []
        parents = [-1] * len(segments)
        prompt_at = len(segments)
        segments += [prompt[common:] for prompt, _ in groups]
        parents += [prompt_at - 1] * len(groups)
        places: list[list[int]] = []  # of every answer: its trained places,
        bits: list[np.ndarray] = []  # the tokens that could stand there (guided answers),
        at: list[int | None] = []  # and its segment; none, where only the prompt matters to it
        for g, (_, answers) in enumerate(groups):
            for answer in answers:
                chosen = list(range(len(answer)))
                if guide:
                    chosen, allowed = guide.replay(answer)
                    if chosen:
                        bits.append(allowed)
                places.append(chosen)
                fed = answer[: chosen[-1]] if chosen else []  # nothing from the last chosen token on matters
                at.append(len(segments) if fed else None)
                if fed:
                    segments.append(fed)
                    parents.append(prompt_at + g)
        tree = Tree([len(segment) for segment in segments], parents, device)
        owner = [prompt_at + g for g, (_, answers) in enumerate(groups) for _ in answers]
        flat = [answer for _, answers in groups for answer in answers]
        numbers = [i if self._row is None else int(self._row[i]) for group in rows for i in group]  # in the rollout
        rated = self._rated(numbers, places)
        ratings = torch.tensor([tokens[0] for tokens in self.policy.ratings.numbers], device=device) if rated else None
        before = [  # the place in the packed row that predicts each trained token
            tree.starts[segment] + x - 1 if x and segment is not None else tree.starts[prompt + 1] - 1
            for chosen, segment, prompt in zip(places, at, owner, strict=True)
            for x in chosen
        ]
        row = torch.tensor([a for a, chosen in enumerate(places) for _ in chosen], device=device, dtype=torch.long)
        place = torch.tensor([x for chosen in places for x in chosen], device=device, dtype=torch.long)
        targets = torch.tensor(
            [flat[a][x] for a, chosen in enumerate(places) for x in chosen], device=device, dtype=torch.long
        )

        def score(head, hidden: Tensor) -> Tensor:
            masks, at, wanted = np.concatenate(bits) if bits else None, hidden[0], targets
            if ratings is not None:  # at the places of ratings, all of the scale's
                again = [place for place in rated.values() for _ in ratings]
                at, wanted = torch.cat([at, at[again]]), torch.cat([targets, ratings.repeat(len(rated))])
                masks = np.concatenate([masks, masks[again]]) if masks is not None else None
            return torch.stack(token_log_probs(head, at, wanted, masks, self.temperature), -1)[None]

        call = {"position_ids": tree.positions, "use_cache": False, "layout": tree}
        call |= {"logits_to_keep": torch.tensor(before, device=device, dtype=torch.long)}
        bare = self.accelerator.unwrap_model(model)
        with ExitStack() as stack:
            # The model without its adapter, which is the reference policy, has the same frozen blocks.
            if self._states is not None and bare is self.policy.model:
                known, skipped = self._states, self.frozen_blocks
                firsts = np.cumsum([0, *map(len, rows[:-1])])
                prompts = [known.prompts[numbers[first] // self.num_generations] for first in firsts]
                states = [prompts[0][:common]] if common else []
                states += [x[common:] for x in prompts]
                states += [known.answer(i, places[a][-1]) for a, i in enumerate(numbers) if at[a] is not None]
                call["inputs_embeds"] = torch.cat(states)[None]
                stack.enter_context(above(bare, skipped))
            else:
                call["input_ids"] = torch.tensor([[token for segment in segments for token in segment]], device=device)
            stack.enter_context(replaced_head(bare, score))
            stack.enter_context(shared_prefix_attention(bare))
            stack.enter_context(self.accelerator.autocast())
            log_probs, entropies = model(**call).logits[0].unbind(-1)
        if ratings is not None:
            log_probs, of_ratings = log_probs.split([len(targets), len(rated) * len(ratings)])
            log_probs = self._weigh(log_probs, of_ratings.view(len(rated), -1), rated)
        entropies = entropies[: len(targets)]
        blank = log_probs.new_zeros(len(flat), width)
        return blank.index_put((row, place), log_probs), blank.index_put((row, place), entropies.detach())

    def _rated(self, numbers: Sequence[int], places: Sequence[Sequence[int]]) -> dict[int, int]:
        """Of the answers `numbers` of the rollout those with a weighed rating -> its place among all trained ones.

        places: of every answer.
        """
        if self._weighed is None:
            return {}
        found, before = {}, 0
        for number, chosen in zip(numbers, places, strict=True):
            if (at := int(self._weighed.at[number])) in chosen:
                found[number] = before + chosen.index(at)
            before += len(chosen)
        return found

    def _weigh(self, log_probs: Tensor, of_ratings: Tensor, rated: dict[int, int]) -> Tensor:
        """(n,) log-probabilities of trained tokens, those of weighed ratings with the gradient of `Weighed.gain`: TRL
        multiplies it by their advantage, 1. of_ratings: (ratings in `rated`, K) log-probabilities.

        Without gradient it is the reference policy that was asked, and its ratings are kept.
        """
        assert self._weighed is not None
        rows, places = (torch.tensor(x, device=log_probs.device) for x in (list(rated), list(rated.values())))
        of_ratings = of_ratings.log_softmax(-1)  # a free policy may write other things too
        if not torch.is_grad_enabled():
            self._weighed.keep_reference(of_ratings, rows)
            return log_probs
        gain, divergence = self._weighed.gain(of_ratings, rows, self.beta)
        if self.beta:
            self._divergences.append(divergence)
        return log_probs.index_put((places,), log_probs[places].detach() + gain - gain.detach())


def _rollout(prompts: list, trainer: SharedPrefixGRPOTrainer) -> dict[str, list]:
    """TRL's `rollout_func`: `prompts` come repeated, G times each in a row."""
    policy, group = trainer.policy, trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    ids = [policy.encode(prompt) for prompt in prompts[::group]]
    # A seed of the step and the process alone: a resumed run draws what an uninterrupted one would have drawn.
    seed = hash((trainer.args.seed, trainer.state.global_step, trainer.accelerator.process_index)) % 2**63
    states = States(trainer.frozen_blocks) if trainer.frozen_blocks and trainer.model.training else None
    weigh = trainer.rating_rewards is not None and trainer.model.training
    groups = policy.answer(ids, group, temperature=trainer.temperature, seed=seed, states=states, weigh=weigh)
    completions = [completion for answers in groups for completion in answers]
    if weigh:
        trainer._weighed = Weighed.of(
            completions,
            [policy.read(completion)[1].well_formed for completion in completions],
            len(policy.ratings.numbers),
            trainer.accelerator.device,
        )
    trainer._states = states
    uses = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer.args.gradient_accumulation_steps % uses:  # else TRL asks for no old policy: it is the same one
        trainer._sampled = [c.log_probs for c in completions]
    return {
        "prompt_ids": [i for i in ids for _ in range(group)],
        "completion_ids": [c.tokens for c in completions],
        "logprobs": [c.log_probs for c in completions],
        "env_mask": [[int(chosen) for chosen in c.chosen] for c in completions],
    }
