# What the batch scripts of slurm/ share: run the ranks, pass signals on, requeue the job until its run is done.  They source this.
#
# Exit codes of a job: 0 the run is done; 2 recipe or data are wrong; 3 failed for good; 75 stopped early, and if it could be requeued it was.

MARGIN_S=30             # before the time limit, ranks that did not stop when they were told to are left behind
LAST_RANK_S=${LAST_RANK_S:-60}          # for the other ranks once the first has ended; those that do not stop with it hang
REFUSALS=20             # of a request to requeue, in words that do not say for certain that they are one
BROKEN_STARTS=3         # attempts in a row in which vitscale itself could not be started

# The plain number of an array's first task would mean the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
ranks='' stop_by='' asked_after=''       # srun's process; once told to stop: the time by which the ranks must have, seconds since the start
job_end=''              # when the job's time is up, as SLURM writes it

say() { echo "vitscale: $*" >&2; }

# vitscale on this node alone, in the environment of the ranks.
here() {
    [ -z "$CONTAINER" ] || ask State        # srun gives up where slurmctld does not answer
    ${CONTAINER:+srun --overlap --nodes=1 --ntasks=1 $CONTAINER} bash "$home/launch/node.sh" "$@"
}

# Sets `answer` to what squeue knows of this job, fields as its --Format takes them; to '' where it knows the job no more.  While nobody
# answers (slurmctld restarts, is overloaded or cannot be reached) it asks again, until SLURM itself ends the job.
ask() {
    local said code told=''
    while :; do
        said=$(timeout -k 5 60 squeue --noheader --jobs="$job" --Format="$1" 2> >(sed 's/^/! /'))
        code=$?
        answer=$(grep -v '^! ' <<< "$said")
        [ $code != 0 ] || break
        [[ $said != *"Invalid job id"* ]] || { answer=''; break; }
        if [ $code = 127 ]; then
            say "no program \`squeue\` on $(node): what SLURM knows of this job cannot be asked"
            answer=''
            break
        fi
        [ -n "$told" ] || say "slurmctld does not answer (${said#*error: }): it is asked again until it does"
        told=yes
        sleep 2
    done
    [ -z "$told" ] || say "slurmctld answers again"
}

# Line NAME of what vitscale answered, $2.  SETUP, modules and containers may print what they like before and after it.
told() { sed -n "s/^vitscale-$1: //p" <<< "$2" | tail -n 1; }

# Train RECIPE [OVERRIDE ...] and end the job with the code of the run, or requeue it.
train() {
    local said folder code verdict
    trap tell_ranks HUP USR1 USR2
    trap : TERM         # SLURM sends it to the ranks too; they save, and this script outlives them
    said=$(here job begin "$@")
    code=$?
    verdict=$(told code "$said")
    folder=$(told folder "$said")
    [ -n "$verdict" ] || broken_start $code
    [ $verdict != 75 ] || requeue ''
    [ -n "$folder" ] || exit $verdict       # a mistake, or there is nothing left to do
    export VITSCALE_TRY
    VITSCALE_TRY=$(told try "$said")
    if [ -z "$stop_by" ]; then
        run_ranks "$folder" "$@"
        code=$?
    else
        code=75
    fi
    if superseded; then
        say "this attempt was given up by SLURM and job $job restarted; the later attempt decides"
        exit 75
    fi
    said=$(here job end "$folder" "$code" $asked_after)
    verdict=$(told code "$said")
    [ -n "$verdict" ] || say "vitscale could not be asked how to go on; the code of the ranks, $code, decides"
    case ${verdict:-$code} in
        0 | 2 | 3) exit ${verdict:-$code} ;;
    esac
    requeue "$(told exclude "$said")"
}

# One task of srun for each rank; returns its code: the highest of all ranks', 128 + N for death by signal N.
run_ranks() {
    local folder=$1 tasks=${SLURM_TASKS_PER_NODE%%[(,]*}
    shift
    ask EndTime
    job_end=$answer
    [ -z "$stop_by" ] || return 75      # told to while slurmctld was waited for
    [ -z "$CONTAINER$PREFIX" ] || export_meeting_point
    # Since SLURM 22.05 srun does not take over the job's --cpus-per-task by itself.  SLURM_NTASKS is the number that was submitted, also
    # when the job was given fewer nodes since.
    LOGS=$folder/logs srun --ntasks="$(count_tasks)" --kill-on-bad-exit=0 --wait=$LAST_RANK_S \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / tasks))}" \
        $CONTAINER bash "$home/launch/node.sh" train "$@" &
    ranks=$!
    while kill -0 $ranks 2>/dev/null; do        # `wait` alone would be ended by a signal
        if [ -n "$stop_by" ] && [ "$(date +%s)" -ge "$stop_by" ]; then
            say "the ranks did not stop in time"
            kill -KILL $ranks                   # of srun; requeueing ends the ranks themselves
        fi
        sleep 1
    done
    wait $ranks
}

# The sum of SLURM_TASKS_PER_NODE: 20 for "8(x2),4".
count_tasks() {
    local part sum=0 times
    for part in ${SLURM_TASKS_PER_NODE//,/ }; do
        times=${part#*x}
        [ "$times" != "$part" ] || times=1
        sum=$((sum + ${part%%(*} * ${times%)}))
    done
    echo $sum
}

# Where the ranks meet; outside of containers they ask scontrol themselves, which containers do not have.
export_meeting_point() {
    local first known
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    if ! getent hosts "$first" > /dev/null; then
        until known=$(timeout -k 5 60 scontrol show node "$first" --oneliner); do ask State; done
        first=$(sed 's/.* NodeAddr=\([^ ]*\) .*/\1/' <<< "$known")
    fi
    export MASTER_ADDR=$first MASTER_PORT=$((20000 + (SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0}) % 10000))
}

tell_ranks() {
    local end now
    asked_after=${asked_after:-$SECONDS}
    [ -z "$ranks" ] || kill -USR2 $ranks 2>/dev/null     # srun passes it on
    say "the ranks are told to save and stop"
    now=$(date +%s)
    stop_by=$((now + 86400))        # they are told by now, whatever becomes of the question
    end=$(timeout -k 5 15 squeue --noheader --jobs="$job" --Format=EndTime 2>/dev/null) || end=$job_end
    end=$(date -d "$end" +%s 2>/dev/null) || return
    # A preempted job ends with its partition's GraceTime, which may be shorter than the margin.
    stop_by=$((end - now < 3 * MARGIN_S ? now + (end - now) * 2 / 3 : end - MARGIN_S))
}

# Sets `recipe` to that of this task of an array; $1: a folder of recipes, or a file with one on each line.
choose_recipe() {
    local LC_ALL=C recipes=() line
    if [ -d "$1" ]; then
        recipes=("$1"/*.yaml)
        [ -e "${recipes[0]}" ] || recipes=()
    elif [ -f "$1" ]; then
        while read -r line || [ -n "$line" ]; do
            [ -z "$line" ] || [ "${line#\#}" != "$line" ] || recipes+=("$line")
        done < "$1"
    else
        say "give a folder of recipes, or a file with one on each line; got '$1', which is neither"
        exit 2
    fi
    if [ $SLURM_ARRAY_TASK_ID -ge ${#recipes[@]} ]; then
        say "$1 holds ${#recipes[@]} recipes, counted from 0: there is none for task $SLURM_ARRAY_TASK_ID"
        exit 2
    fi
    recipe=${recipes[$SLURM_ARRAY_TASK_ID]}
    say "task $SLURM_ARRAY_TASK_ID: $recipe"
}

# Run Prometheus over the runs in folder $1 on port $2 of this node until SLURM ends the job.
serve_prometheus() {
    local folder=$1/.prometheus program
    if ! here monitor --help > /dev/null 2>&1; then
        say "this vitscale has no command \`monitor\`, which writes Prometheus's configuration: nothing is started"
        exit 2
    fi
    [ -z "$SETUP" ] || eval "$SETUP"
    program=$(command -v prometheus) || { say "no program \`prometheus\` on $(node): install it, or load it by SETUP"; exit 2; }
    here monitor "$1" --prometheus "$folder" > /dev/null || exit
    "$program" --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" --web.listen-address="127.0.0.1:$2" &
    server=$!
    trap 'stop_by=soon; kill $server' HUP USR1 USR2
    trap 'kill $server' TERM
    say "Prometheus listens on $(node): ssh -L $2:127.0.0.1:$2 $(node), then http://127.0.0.1:$2"
    while kill -0 $server 2> /dev/null; do sleep 1; done
    [ -z "$stop_by" ] || requeue ''
    wait $server
    exit
}

# Whether a later attempt of this job runs or waits.  SLURM starts one when it has lost the node of this script, which lives on.
superseded() {
    ask RestartCnt
    [ "${answer:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]
}

# Put the job back into the queue; $1: nodes to leave out from now on.  A request whose answer is lost may have come through all the same,
# so what SLURM says of the job decides.
requeue() {
    local state restarts said asked=0
    while :; do
        ask State:30,RestartCnt
        read -r state restarts <<< "$answer"
        case $state in
            RUNNING | SIGNALING | RESIZING | SUSPENDED | STOPPED) ;;
            *) break ;;
        esac
        if [ "$restarts" != "${SLURM_RESTART_COUNT:-0}" ]; then break; fi
        if said=$(timeout -k 5 60 scontrol requeue "$job" 2>&1); then
            state=REQUEUED
            asked=1
            break
        fi
        asked=$((asked + 1))
        case $said in
            *disabled* | *denied* | *"batch jobs"*) asked=$REFUSALS ;;
        esac
        if [ $asked -ge $REFUSALS ]; then
            say "job $job may not be requeued ($said): the next one of its chain goes on; without one, submit it again"
            exit 75
        fi
        say "the request to requeue job $job was not answered ($said)"
        sleep 2
    done
    case $asked-$state in
        [1-9]*-REQUEUED | [1-9]*-PENDING | [1-9]*-COMPLETING | [1-9]*-RUNNING) ;;
        *) say "job $job is ${state:-gone}: left as it is"         # cancelled, or SLURM requeues it itself
           exit 75 ;;
    esac
    say "job $job is requeued (it was restarted ${SLURM_RESTART_COUNT:-0} times before)"
    # Only a waiting job's list can be changed.  SLURM has begun to end this one, which leaves us KillWait seconds.
    [ -z "$1" ] || for _ in 1 2 3 4 5; do
        scontrol update "jobid=$job" "excnodelist=$1" && { say "leaves out $1 from now on"; break; }
        sleep 1
    done
    exit 75
}

# vitscale could not be started, with code $1: a broken environment, a bad node, a file system that is away.  Then nothing can be noted in
# the run folder; SLURM keeps the count, in the job's comment as COUNT@RESTART, and a few in a row end the job.
broken_start() {
    local restarts=${SLURM_RESTART_COUNT:-0} mark=vitscale-broken-starts comment count=1
    say "vitscale cannot be started on $(node): code $1; see the lines above, and SETUP, VENV or the container in the script"
    [ $restarts != 0 ] || exit 2
    ask Comment:250
    comment=$(sed 's/^(null)//; s/ *$//' <<< "$answer")
    if [[ $comment =~ $mark=([0-9]+)@([0-9]+) ]] && [ ${BASH_REMATCH[2]} = $((restarts - 1)) ]; then
        count=$((BASH_REMATCH[1] + 1))
    fi
    comment=${comment%%$mark*}
    scontrol update "jobid=$job" "comment=${comment% }${comment:+ }$mark=$count@$restarts" || count=$restarts
    if [ $count -ge $BROKEN_STARTS ]; then
        say "stopped for good: $count attempts in a row could not start vitscale; mend that, then submit the job again"
        exit 3
    fi
    requeue ''
}

node() { echo "${SLURMD_NODENAME:-$(hostname)}"; }
