"""A verl checkpoint of FSDP's shards as a model folder that transformers, vLLM and reczero open: merge.py SHARDS MODEL.

An adapter is merged into its base. MODEL appears whole or not at all.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(shards: Path, model: Path) -> None:
    here = Path(__file__).resolve().parent
    half = model.with_name(f"{model.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    merge = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    subprocess.run([*merge, "--local_dir", str(shards), "--target_dir", str(half)], check=True)
    adapter = half / "lora_adapter"
    if adapter.is_dir():
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(half, dtype="auto")
        PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(half)
        shutil.rmtree(adapter)
    shutil.copy2(here / "reczero.json", half)  # how it is prompted
    (half / "checkpoint.txt").write_text(os.path.relpath(shards, here) + "\n")
    model.parent.mkdir(parents=True, exist_ok=True)
    half.rename(model)
    print(f"{model}: written")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python merge.py SHARDS MODEL")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
