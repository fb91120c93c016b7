"""Tasks of a cluster without a launcher, and two runs in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lacy_stream.recipe import RecipeError
from lacy_stream.train.launcher import check_launcher
from lacy_stream.train.places import only_run_in


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "SLURM"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "OpenMPI"),
        ({"PMI_SIZE": "2"}, "MPI"),
    ],
)
def test_tasks_without_a_launcher(environment: dict[str, str], cluster: str) -> None:
    """Two tasks of which nobody has made ranks are refused with the command that starts two ranks."""
    with pytest.raises(RecipeError, match=f"^{cluster} has started 2 tasks .*`srun --nodes=1 --ntasks=1 composer -n 2"):
        check_launcher(environment)


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "2", "WORLD_SIZE": "2", "RANK": "0"}, {"PMI_SIZE": ""}]
)
def test_one_task_or_ranks(environment: dict[str, str]) -> None:
    """One task, and the ranks of a launcher, may run."""
    check_launcher(environment)


def test_one_run_in_a_folder(tmp_path: Path) -> None:
    """The second run in a folder is told who writes there; after the first has ended, it may."""
    with only_run_in(tmp_path), pytest.raises(RecipeError, match=r"save_folder: another run .*\(process \d+ on .+\)"):
        with only_run_in(tmp_path):
            pass
    with only_run_in(tmp_path):
        pass
