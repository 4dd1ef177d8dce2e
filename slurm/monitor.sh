#!/bin/bash
# Prometheus as a job, for a cluster whose administrators run none: it follows the runs of a folder while they train.  From the checkout:
#
#     sbatch slurm/monitor.sh [RUNS]              a folder of runs; default: runs
#
# It listens on its own node alone and says in its log how to reach it.  `prometheus` must be on the PATH (or put there by SETUP).

#SBATCH --job-name=monitor
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@60              # then it closes its files and requeues itself
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
##SBATCH --account=...
##SBATCH --partition=...

port=9090
# export VENV=$HOME/envs/vitscale       # as in slurm/vit_huge.sh
# export SETUP="module load prometheus"

[ -n "$SLURM_JOB_ID" ] || { echo "$0 is a batch script of SLURM: submit it by  sbatch $0; without SLURM: vitscale monitor" >&2; exit 2; }
home=${VITSCALE_HOME:-$SLURM_SUBMIT_DIR}        # the folder of launch/: SLURM runs a copy of this script from elsewhere
[ -f "$home/launch/batch.sh" ] || { echo "vitscale: no launch/batch.sh in $home: submit from the checkout, or export VITSCALE_HOME" >&2; exit 2; }
source "$home/launch/batch.sh"
serve_prometheus "${1:-runs}" "$port"
