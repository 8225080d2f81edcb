"""The local engine on several GPUs of one node: presets for accelerate, and the command that starts them."""

import sys
from collections.abc import Sequence
from importlib.resources import files

from reczero.errors import UserError
from reczero.recipes import Recipe

from . import Preset

SHARDED = ("zero3", "fsdp")


def check(recipe: Recipe, preset: Preset, gpus: int) -> None:
    """Raises UserError, with every reason why the recipe can't be started so."""
    faults = []
    if preset in SHARDED and recipe.method != "sft" and recipe.rollout.engine != "vllm":
        faults.append(f"--preset {preset}: weights in shards can't answer by themselves; set rollout.engine=vllm")
    if recipe.training.groups_per_step % gpus:
        faults.append(
            f"training.groups_per_step: {recipe.training.groups_per_step} can't be shared by {gpus} processes"
        )
    if recipe.method != "reczero" and recipe.sft.traces_per_step % gpus:
        faults.append(f"sft.traces_per_step: {recipe.sft.traces_per_step} can't be shared by {gpus} processes")
    if faults:
        raise UserError("\n  ".join(["the recipe can't be launched as it is:", *faults]))


def command(preset: Preset, gpus: int, train: Sequence[str], cpu: bool = False) -> list[str]:
    """The command that starts `reczero train` with the arguments `train` in as many processes as `gpus`.

    cpu: on CPUs by gloo, for a trial; only `ddp` goes there.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if cpu:
        # accelerate's own way on CPUs wants MPI; this one starts the processes as torchrun does.
        launch += ["--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    else:
        launch += ["--config_file", str(files("reczero.scaleout") / "presets" / f"{preset}.yaml")]
    return [*launch, f"--num_processes={gpus}", "--main_process_port=0", "-m", "reczero.cli.main", "train", *train]
