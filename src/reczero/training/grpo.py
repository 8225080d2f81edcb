"""GRPO on TRL, with what TRL lacks for this task. What differs from `trl.GRPOTrainer` 1.16:

1. Rollouts compute every prompt once for its whole group (`reczero.rollout`), and may be guided by the template.
2. The update computes every prompt once too: a group is one packed row, and its answers share the prompt.
3. Only tokens that the policy chose are trained; log-probabilities are under the guidance they were sampled with.
4. Advantages are (R − mean) / (std + 1e-6) in the group, as in the code derived from the authors' release (TRL: 1e-4).
5. Groups stay whole: rows are not shuffled inside a generation batch (groups already come in random order).
6. A group whose rewards are all equal has no gradient: with no KL term it costs no forward or backward pass.

Shapes: B rows = prompts × G, C tokens in the longest answer of the batch, V the vocabulary.
"""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from reczero.rollout import Policy
from reczero.rollout.guidance import widen
from reczero.rollout.shared_prefix import PackedGroup, can_share, shared_prefix_attention


def group_advantages(rewards: Tensor, group_size: int, epsilon: float) -> Tensor:
    """(B,) rewards, `group_size` rows a group -> (B,): (R − mean) / (std + epsilon), std with Bessel's correction."""
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + epsilon)).flatten()


class SharedPrefixGRPOTrainer(GRPOTrainer):
    """`policy` shares its model with the trainer; the other arguments are TRL's."""

    def __init__(self, *, policy: Policy, advantage_epsilon: float = 1e-6, **kwargs):
        self.policy = policy
        self.advantage_epsilon = advantage_epsilon
        self.skipped_groups = 0
        self._staging: str | None = None
        self._rewards: Tensor | None = None
        self._buffered_inputs: list | None = None
        args = kwargs["args"]
        self._shares = can_share(policy.model)
        own = self._shares and not args.use_vllm
        super().__init__(model=policy.model, rollout_func=_rollout if own else None, **kwargs)
        # PEFT may have wrapped it: from now on it is the trained model that answers.
        policy.model = self.accelerator.unwrap_model(self.model)

    # --- rollout and advantages -----------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)  # of all processes
        return by_function

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        group = self.num_generations if self.model.training else self.num_generations_eval
        advantages = group_advantages(self._rewards, group, self.advantage_epsilon)
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)]
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

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """Atomic: written under another name, then renamed; the one before goes only after that."""
        final = Path(self.args.output_dir)
        self._staging = str(final / "unfinished")
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(self._staging, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            older = [path for path in final.glob("checkpoint-*") if path.name != name]
            shutil.rmtree(final / name, ignore_errors=True)
            os.replace(final / "unfinished" / name, final / name)
            shutil.rmtree(final / "unfinished")
            for path in older:
                shutil.rmtree(path)

    def create_model_card(self, *args, **kwargs):
        """Nothing: TRL's card speaks of the hub; a run has recipe.yaml, run.json and its report."""

    # --- update ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        useless = self.beta == 0 and not self._entropy_bonus_enabled and not inputs["advantages"].any()
        if useless:
            self.skipped_groups += len(inputs["advantages"]) // self.num_generations
            # A true zero that reaches every trained weight, so that accumulation and other processes go on as usual.
            return sum(p.flatten()[:1].sum() * 0 for p in model.parameters() if p.requires_grad)
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """Log-probabilities and entropies (B, C); 0 where the template forced a token or nothing stands."""
        if not self._shares or any(value is not None and value is not False for value in kwargs.values()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        prompts, answers = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
        prompt_lengths = attention_mask[:, :-logits_to_keep].sum(1).tolist()
        lengths = attention_mask[:, -logits_to_keep:].sum(1)
        log_probs, entropies, start = [], [], 0
        with shared_prefix_attention(self.accelerator.unwrap_model(model)):
            while start < len(prompts):
                end = start + 1  # a group: rows with the same prompt, one after another
                while end < len(prompts) and torch.equal(prompts[end], prompts[start]):
                    end += 1
                prompt = prompts[start, prompts.shape[1] - prompt_lengths[start] :]
                group = self._group_log_probs(model, prompt, answers[start:end], lengths[start:end])
                log_probs.append(group[0])
                entropies.append(group[1])
                start = end
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _group_log_probs(self, model, prompt: Tensor, answers: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """One group: prompt (P,), answers (G, C), lengths (G,) -> log-probabilities and entropies (G, C)."""
        count, width = answers.shape
        guide = self.policy.guide
        if guide:
            replayed = [guide.replay(a[:n].tolist()) for a, n in zip(answers, lengths.tolist(), strict=True)]
            places = [places for places, _ in replayed]
        else:
            places = [list(range(n)) for n in lengths.tolist()]
        used = max((p[-1] + 1 for p in places if p), default=1)  # nothing after the last chosen token matters
        # Every answer begins with the prompt's last token, so that each position predicts one token of one answer.
        shared = len(prompt) - 1
        fed = torch.cat([prompt[-1:].expand(count, 1), answers[:, : used - 1]], 1)
        layout = PackedGroup(shared, count, used)
        device = answers.device
        row = torch.tensor([i for i, p in enumerate(places) for _ in p], device=device, dtype=torch.long)
        place = torch.tensor([x for p in places for x in p], device=device, dtype=torch.long)
        before, targets = shared + row * used + place, answers[row, place]
        call = {
            "input_ids": torch.cat([prompt[:-1], fed.flatten()])[None],
            "position_ids": layout.positions(device),
            "use_cache": False,
            "layout": layout,
        }
        blank = torch.zeros(count, width, device=device)
        if not guide:  # TRL's head works in tiles: no (tokens, V) logits are kept
            labels = torch.full_like(call["input_ids"], -100)
            labels[0, before] = targets
            with self.accelerator.autocast():
                out = model(**call, shift_labels=labels, fused_lm_head=True)
            return tuple(blank.index_put((row, place), x[0, before]) for x in (out.log_probs, out.entropy))
        with self.accelerator.autocast():
            logits = model(**call, logits_to_keep=before).logits[0].float()
        allowed = torch.cat([widen(masks, logits.shape[1], device) for _, masks in replayed])
        every = (logits.masked_fill(~allowed, float("-inf")) / self.temperature).log_softmax(-1)
        with torch.no_grad():
            entropy = torch.special.entr(every.exp()).sum(-1)
        chosen = every.gather(1, targets[:, None])[:, 0]
        return blank.index_put((row, place), chosen), blank.index_put((row, place), entropy)


def _rollout(prompts: list, trainer: SharedPrefixGRPOTrainer) -> dict[str, list]:
    """TRL's `rollout_func`: `prompts` come repeated, G times each in a row."""
    policy, group = trainer.policy, trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    ids = [policy.encode(prompt) for prompt in prompts[::group]]
    # A seed of the step and the process alone: a resumed run draws what an uninterrupted one would have drawn.
    seed = hash((trainer.args.seed, trainer.state.global_step, trainer.accelerator.process_index)) % 2**63
    completions = [
        c for answers in policy.answer(ids, group, temperature=trainer.temperature, seed=seed) for c in answers
    ]
    return {
        "prompt_ids": [i for i in ids for _ in range(group)],
        "completion_ids": [c.tokens for c in completions],
        "logprobs": [c.log_probs for c in completions],
        "env_mask": [[int(chosen) for chosen in c.chosen] for c in completions],
    }
