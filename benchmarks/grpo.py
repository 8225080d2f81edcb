"""GRPO by stock TRL and by ours, in turn: the same as `reczero bench grpo`.

python benchmarks/grpo.py --json grpo.json
python benchmarks/grpo.py --sweep --json sweep.json --plot sweep.svg
"""

import typer

from reczero.cli.bench import grpo

if __name__ == "__main__":
    typer.run(grpo)
