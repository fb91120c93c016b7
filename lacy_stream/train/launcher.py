"""Refuses to run as one of several tasks of a cluster of which no launcher has made ranks."""

from __future__ import annotations

from collections.abc import Mapping

from lacy_stream.recipe import RecipeError

TASKS = {
    "SLURM_STEP_NUM_TASKS": "SLURM",
    "SLURM_NTASKS": "SLURM",
    "SLURM_NPROCS": "SLURM",
    "OMPI_COMM_WORLD_SIZE": "OpenMPI",
    "PMI_SIZE": "MPI",
    "PMIX_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH2",
    "FLUX_JOB_SIZE": "Flux",
}
"""The variables in which a cluster says how many tasks it has started, and its name."""


def check_launcher(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several tasks without a launcher: each of them would be a whole run of its own.

    A launcher of ranks, such as ``composer`` or ``torchrun``, sets WORLD_SIZE.

    Raises:
        RecipeError: says how to start the run.
    """
    if "WORLD_SIZE" in environment:
        return
    for variable, cluster in TASKS.items():
        tasks = environment.get(variable, "")
        if tasks.isdigit() and int(tasks) > 1:
            raise RecipeError(
                f"{cluster} has started {tasks} tasks ({variable}={tasks}), and no launcher has made ranks of them "
                "(WORLD_SIZE is not set): each would be a run of its own, with the same save_folder. Let composer "
                f"start the ranks, from one task on each node: `composer -n {tasks} RECIPE` on one node (in SLURM: "
                f"`srun --nodes=1 --ntasks=1 composer -n {tasks} RECIPE`), and on several with its options "
                "--world_size, --node_rank, --master_addr and --master_port"
            )
