"""Every command of `stemwright`, in the order of its help; a module holds the commands of one subject.

To add a command: write `add(commands)` in the module of its subject, with `set_defaults(run=…)` for the function that does
the work and returns the exit code. A new module gets a line in `GROUPS`. Modules import what is heavy in their functions,
so that the help stays quick.
"""

import serving.__main__
from training.commands import data, demo, doctor, evaluation, experiments, run

GROUPS = (data.add, run.add, evaluation.add, experiments.add, serving.__main__.add_commands, demo.add, doctor.add)
