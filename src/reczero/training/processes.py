"""Several processes of one run, as `accelerate launch` or torchrun starts them: all work, only the main one writes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # processes wait for the main one to prepare data; a dead one is the launcher's to notice


def started() -> tuple[int, int]:
    """This process's rank and how many there are, as their launcher says; known before anything is set up."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Processes:
    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls) -> "Processes":
        """Meets the others, if a launcher started any. All processes must call this; a second call changes nothing."""
        if started()[1] == 1:
            return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block, then the others, who find what it made."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def share(self, rows: int) -> list[int]:
        """Which of `rows` rows are this process's to do."""
        return list(range(self.rank, rows, self.count))

    def gather(self, things: Sequence[T]) -> list[T]:
        """The things of all processes, in the order of their ranks, to every process."""
        return list(gather_object(list(things))) if self.count > 1 else list(things)

    def agree(self, value: T) -> T:
        """The main process's value, to every process."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def part(self) -> None:
        """Ends what `join` began."""
        if self.count > 1:
            PartialState().destroy_process_group()
