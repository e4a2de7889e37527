#!/bin/bash
#SBATCH --job-name=hr-{{ name }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node={{ cores }}
#SBATCH --time={{ minutes }}
#SBATCH --output={{ log }}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ notice }}
{% for option in options %}
#SBATCH {{ option }}
{% endfor %}
# The study runs on the first node; {{ solvers }}. Ray serves this
# study alone, on all nodes: it has a token of its own, takes free ports and the cores of this allocation, and ends with
# the study. Nothing else of this user is stopped.
umask 077
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
export TMPDIR=/tmp  # Ray's sockets lie below it, and their paths may not exceed 107 bytes
export RAY_USAGE_STATS_ENABLED=0
time_is_up=
trap 'time_is_up=1; kill -TERM "$study" 2> /dev/null' USR1
trap 'kill -TERM "$study" 2> /dev/null' TERM INT
cd {{ folder }} || exit 2
{{ command }} &
study=$!
wait "$study"
code=$?
while kill -0 "$study" 2> /dev/null; do
    wait "$study"
    code=$?
done
if [ -n "$time_is_up" ] && [ "$code" -eq {{ stopped }} ]; then
    echo "the time limit was near: the study wrote a checkpoint, and the job goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60  # Slurm ends this script
elif [ -n "$time_is_up" ] && [ "$code" -ne 0 ]; then
    echo "the time limit was near before the study could stop in order: submit it again, with more --minutes or --notice"
fi
exit "$code"
