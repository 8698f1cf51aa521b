#!/bin/sh
#SBATCH --job-name=tgsent
#SBATCH --array=0-8%3
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=02:00:00
# Run one trial per task of a job array, into one run folder on a disk that all nodes see:
#   sbatch scripts/slurm_array.sh
# The array's size is the number of models times the number of trials. Failed or killed tasks can be
# submitted again: finished trials are not run again, and the others go on from their checkpoints.
#   tgsent report runs/default   shows what is there, at any time
set -eu
models=${MODELS:-gpt2 gpt-neo t5}
trials=${TRIALS:-3}

# shellcheck disable=SC2086  # the names are separated by spaces
set -- $models
options=$(printf -- '-m %s ' "$@")
shift $((SLURM_ARRAY_TASK_ID / trials))
# shellcheck disable=SC2086  # as above
exec tgsent run $options -n "$trials" ${OPTIONS:-} \
  --only "$1:$((SLURM_ARRAY_TASK_ID % trials + 1))"
