"""The stages that make a policy: GRPO on TRL, with validation, checkpoints and resume."""
