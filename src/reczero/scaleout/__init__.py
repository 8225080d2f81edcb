"""More than one machine: the same recipe on verl, and what it will need."""

from typing import Literal

Preset = Literal["ddp", "zero2", "zero3", "fsdp"]  # how accelerate shares the work: `presets/`
