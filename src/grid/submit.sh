#!/bin/bash
#SBATCH --job-name=@NAME@
#SBATCH --output=/dev/null
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH @OPTIONS@
# Written by `segment-rlhf ablate --submit slurm`: runs one stage, or without an array writes the results.
submission=@DIR@
mark=@MARK@
program=@PROGRAM@
tasks=(@TASKS@)
if [ -n "$SLURM_ARRAY_JOB_ID" ]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    task=${tasks[$SLURM_ARRAY_TASK_ID]}
else
    job=$SLURM_JOB_ID
    task=
fi
node=${SLURMD_NODENAME:-$(hostname)}

# Slurm may be too busy to answer.
state() {
    local try
    for try in 1 2 3; do
        squeue --noheader --jobs="$job" --format=%T 2>/dev/null && return
        sleep 2
    done
}

# Without a shared folder, the job's comment is what `status` can read elsewhere.
fail() {
    scontrol update JobId="$job" Comment="$1"
    exit 2
}

grep -qsF -- "$mark" "$submission/plan.json" ||
    fail "$node: the folder $submission is not here; put --run on a file system that all nodes mount, and submit again"
[ -x "$program" ] ||
    fail "$node: the program $program is not here; install it where all nodes have it, and submit again"
exec >>"$submission/$job.log" 2>&1
echo "$(date '+%F %T') job $job on $node, start $((${SLURM_RESTART_COUNT:-0} + 1))"

# Slurm warns this script alone before the time limit. Of a job that is cancelled or requeued by others it signals the
# program, too, and calls the job no longer running: nothing is to be passed on then, and nothing to be requeued.
warned=
warn() {
    if [ "$(state)" = RUNNING ]; then
        warned=yes
        kill -TERM "$child"
    fi
}
trap warn TERM

"$program" ablate --element "$submission" $task @ARGUMENTS@ &
child=$!
wait "$child"
status=$?
# A signal ends the wait, not the program.
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done

# 130: the program has saved what it had; 143: the signal came before it had anything.
if [ -n "$warned" ] && { [ "$status" = 130 ] || [ "$status" = 143 ]; } && [ "$(state)" = RUNNING ]; then
    echo "the time limit is near: back into the queue"
    # By array and task: the array's number alone would requeue all of its elements.
    scontrol requeue "$job"
fi
exit "$status"
