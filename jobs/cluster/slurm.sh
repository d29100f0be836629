#!/bin/bash
# A sweep on SLURM: sbatch jobs/cluster/slurm.sh, from the root of a checkout that all nodes see.
# Ray starts on each node, the job runs on the first, and all of it ends with the job. Arguments replace the command below:
#   sbatch --nodes 2 jobs/cluster/slurm.sh python jobs/reproduce.py table2 --out /shared/paper
# A lost node costs the units that it held. A lost first node ends the job: it is queued again, and goes on where it stopped.
#SBATCH --job-name=postdiff
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=postdiff-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
set -euo pipefail

if [ $# -eq 0 ]; then
    set -- python jobs/coco_sweep.py --backbone sd15 --prompts captions.tsv --out /shared/sweep --gpus-per-worker 1 \
        --reference /shared/val2014 --fid /shared/inception-2015-12-05.pt
fi

# shellcheck source=/dev/null
[ -z "${POSTDIFF_VENV-.venv}" ] || . "${POSTDIFF_VENV-.venv}/bin/activate"
export RAY_AUTH_MODE=token                   # who has no token is refused: nodes are shared with other users
ray get-auth-token --generate > /dev/null    # ~/.ray/auth_token, once; homes are shared
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
ulimit -n 65536 2> /dev/null || true         # what the site allows, if that is less

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --all-ip-addresses) # none is a loopback
address=${address%% *}:$((20000 + SLURM_JOB_ID % 10000)) # a port of the job's own

# The job alone is told where the cluster is: `ray start --head` must not look for one. At its end `ray stop` stops every
# Ray of yours on a node: nodes are taken whole.
srun --kill-on-bad-exit=0 --cpu-bind=none ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- env RAY_ADDRESS="$address" "$@"
