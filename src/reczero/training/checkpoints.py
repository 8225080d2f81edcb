"""Checkpoints that are whole or not there, for any trainer of transformers."""

import os
import shutil
from pathlib import Path

from transformers import Trainer


class AtomicCheckpoints(Trainer):
    """Mixed in before a trainer. The newest checkpoint stays, those before it go."""

    _staging: str | None = None

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """Written under another name, then renamed; the one before goes only after that."""
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
