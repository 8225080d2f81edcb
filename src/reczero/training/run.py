"""A run folder: what was asked, what was made of it, and what a second call may reuse."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reczero import __version__
from reczero.errors import UserError
from reczero.files import atomic_file, read_json, write_json, writing
from reczero.recipes import Recipe, to_yaml

_LIBRARIES = ("torch", "transformers", "trl", "peft", "llguidance", "polars")


class Run:
    """`runs/NAME/`. `info` is run.json: versions, data, seconds of every stage, and what is done.

    A stage is done once; a killed run begins again at the stage it was in (GRPO: at its last checkpoint). Where several
    processes run it, one `writes`.
    """

    def __init__(self, path: Path, info: dict[str, Any], writes: bool = True):
        self.path, self.info, self.writes = path, info, writes

    @classmethod
    def open(cls, path: Path, recipe: Recipe, resume: bool, writes: bool = True) -> "Run":
        """A new run, or, with `resume`, one of the same recipe as it was left; writes nothing yet.

        Raises UserError for any other folder.
        """
        text = to_yaml(recipe)
        if (path / "run.json").is_file():
            if not (path / "recipe.yaml").is_file():
                raise UserError(f"{path}: its recipe.yaml is missing; restore it, or choose another --out.")
            if (path / "recipe.yaml").read_text("utf-8") != text:
                raise UserError(f"{path}: holds a run of another recipe; choose another --out or remove the folder.")
            if not resume:
                raise UserError(f"{path}: holds a run already; --resume goes on with it, or choose another --out.")
            return cls(path, read_json(path / "run.json"), writes)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file; choose another --out.")
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path}: is not empty and not a run; choose another --out.")
        versions = {"reczero": __version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in _LIBRARIES}
        return cls(path, {"versions": versions, "recipe_sha256": hashlib.sha256(text.encode()).hexdigest()}, writes)

    def begin(self, recipe: Recipe) -> None:
        """Makes the folder of a new run, once it is known that it can run."""
        new = not (self.path / "run.json").exists()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_file(self.path / "recipe.yaml") as file:
                file.write_text(to_yaml(recipe), "utf-8")
            self.save()
        except UserError:  # a full disk, most likely: a new run leaves no empty folder
            if new:
                (self.path / "recipe.yaml").unlink(missing_ok=True)
                if not any(self.path.iterdir()):
                    self.path.rmdir()
            raise

    @property
    def finished(self) -> bool:
        return bool(self.info.get("finished"))

    def save(self, **changes: Any) -> None:
        """Writes run.json, with `changes`."""
        self.info |= changes
        if self.writes:
            write_json(self.path / "run.json", self.info)

    def done(self, stage: str, seconds: float) -> None:
        """That `stage` is finished, and how long it took."""
        self.save(seconds=self.info.get("seconds", {}) | {stage: round(seconds, 1)})

    def stage_done(self, stage: str) -> bool:
        return stage in self.info.get("seconds", {})

    def stage(self, stage: str, **changes: Any) -> None:
        """Writes what is known of a stage."""
        stages = self.info.get("stages", {})
        self.save(stages=stages | {stage: stages.get(stage, {}) | changes})

    def predictions(self, name: str) -> Path:
        return self.path / "predictions" / f"{name}.parquet"

    def validation(self, stage: str) -> Path:
        """What the model that a stage left answered on the validation rows."""
        return self.path / "validation" / f"{stage}.parquet"

    def last_checkpoint(self, stage: str) -> Path | None:
        """The newest whole checkpoint of a stage: an unfinished one has another name."""
        folder = self.path / "checkpoints" / stage
        found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        return read_json(checkpoint / "trainer_state.json")["global_step"]

    @staticmethod
    def is_last(checkpoint: Path) -> bool:
        """Whether no step was to follow it."""
        state = read_json(checkpoint / "trainer_state.json")
        return state["global_step"] >= state["max_steps"]
