"""A policy of ours as a teacher: several samples an example, each prompt computed once."""

import hashlib
from collections.abc import Iterator, Sequence

from reczero.rollout import Policy
from reczero.rollout.decoder import Completion

from .base import Attempt, Task, Teacher, Written, prompt_of


class PolicyTeacher(Teacher):
    """`samples` answers at `temperature` to each task, `batch` tasks together. The same seed gives the same answers."""

    name = "policy"

    def __init__(self, policy: Policy, samples: int, temperature: float, seed: int, batch: int):
        self.policy, self.samples, self.temperature, self.seed, self.batch = policy, samples, temperature, seed, batch

    def write(self, tasks: Sequence[Task]) -> Iterator[Written]:
        for start in range(0, len(tasks), self.batch):
            batch = tasks[start : start + self.batch]
            prompts = [self.policy.encode(prompt_of(self.policy.template, task)) for task in batch]
            # A seed of the tasks, not of their place: a resumed run draws the same.
            mark = f"{self.seed} {[(task.example_id, task.told) for task in batch]}"
            seed = int.from_bytes(hashlib.sha256(mark.encode()).digest()[:7], "big")
            answers = self.policy.answer(prompts, self.samples, temperature=self.temperature, seed=seed)
            yield [
                (task, [self._attempt(prompt, completion) for completion in completions])
                for task, prompt, completions in zip(batch, prompts, answers, strict=True)
            ]

    def _attempt(self, prompt: list[int], completion: Completion) -> Attempt:
        chosen = [p for p, free in zip(completion.log_probs, completion.chosen, strict=False) if free]
        return Attempt(
            self.policy.read(completion)[0],
            None if completion.finished else "truncated",
            len(prompt),
            len(completion.tokens),
            confidence=sum(chosen) / len(chosen) if chosen else None,
        )
