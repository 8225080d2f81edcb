"""Answers from a policy: many to one prompt, which is computed once; free, or guided by the template."""

from .policy import Policy

__all__ = ["Policy"]
