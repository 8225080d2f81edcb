"""`reczero plan` against this machine: fitted at one shape, tried at three. The same as `reczero bench plan`.

python benchmarks/plan.py --json plan.json      (exit code 1 if a step's time or memory is off by more than 15 %)
"""

import typer

from reczero.cli.bench import plan

if __name__ == "__main__":
    typer.run(plan)
