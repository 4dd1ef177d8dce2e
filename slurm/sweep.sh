#!/bin/bash
# Many small runs, a GPU for each: an array with one task for each recipe of a sweep.  From the checkout, with its N recipes:
#
#     sbatch --array=0-$((N - 1))%4 slurm/sweep.sh SWEEP [duration='5 epochs' ...]     further words are overrides of every recipe
#
# SWEEP is a folder of recipes (*.yaml, in the order of their names) or a text file with a recipe on each line.  Every task saves before
# its time limit, requeues itself and goes on until its recipe is done, as slurm/vit_huge.sh does: docs/cluster.md.

#SBATCH --job-name=sweep
#SBATCH --array=0-7%4                   # the first and the last task; %4: four at a time
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=2               # cores of a node divided by its GPUs
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR2@120             # seconds for the last step and a checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
##SBATCH --account=...
##SBATCH --partition=...

# export VENV=$HOME/envs/vitscale       # these lines as in slurm/vit_huge.sh
# export SETUP="module load cuda/12.8"
# export CONTAINER="--container-image=$PWD/vitscale.sqsh --container-mounts=$PWD"
# export PREFIX="apptainer exec --nv --bind $PWD vitscale.sif"

[ -n "$SLURM_ARRAY_TASK_ID" ] || { echo "$0 is a batch script of SLURM: submit it by  sbatch --array=0-9%4 $0 SWEEP" >&2; exit 2; }
home=${VITSCALE_HOME:-$SLURM_SUBMIT_DIR}        # the folder of launch/: SLURM runs a copy of this script from elsewhere
[ -f "$home/launch/batch.sh" ] || { echo "vitscale: no launch/batch.sh in $home: submit from the checkout, or export VITSCALE_HOME" >&2; exit 2; }
source "$home/launch/batch.sh"
choose_recipe "$1"
train "$recipe" "${@:2}"
