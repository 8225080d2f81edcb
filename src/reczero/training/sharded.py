"""Where the weights lie in shards over several GPUs (FSDP, ZeRO-3), answers come from a whole copy of them.

Written for accelerate; neither FSDP nor DeepSpeed could be exercised, which want GPUs.
"""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from reczero.rollout import Policy


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds the whole weights. ZeRO-1 and -2 shard the optimizer and the gradients only."""
    kind, plugin = accelerator.distributed_type, accelerator.state.deepspeed_plugin
    return kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and plugin.zero_stage == 3)


def save_whole(accelerator: Accelerator, wrapped, policy: Policy, folder: Path) -> None:
    """Writes the model of `policy` as transformers loads it; wrapped: as the trainer has it. All processes must call
    this: each gives its shards, and the main one writes."""
    weights = accelerator.get_state_dict(wrapped)
    if accelerator.is_main_process:
        accelerator.unwrap_model(wrapped).save_pretrained(folder, state_dict=weights)
        policy.tokenizer.save_pretrained(folder)
    accelerator.wait_for_everyone()
