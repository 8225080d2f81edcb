"""Measurements that users can repeat: two things timed in turn, in one run."""
