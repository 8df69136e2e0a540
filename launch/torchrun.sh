#!/usr/bin/env bash
# Starts N processes of a program on this machine with the variables that torchrun would set; on
# several machines, where it is started on each. See launch/README.md for the variables, signals and exit codes.
set -u -m # -m: every rank leads its own process group, so that its children can be ended too

readonly POLL_S=0.1
readonly AGAIN_MS=500 # signals that are not further apart are one
readonly UNKILLABLE_S=10
readonly WANTS_REQUEUE=75
readonly PEER_LOST=5

usage() {
    cat <<'USAGE'
usage: launch/torchrun.sh -n N [--master-port P] PROGRAM [ARGUMENT...]
       launch/torchrun.sh -n N --nodes M --node-rank K --master-addr A --master-port P PROGRAM...

  -n N               number of processes on this machine
  --master-port P    port of rank 0 (default: a free one)
  --nodes M          number of machines, each with N processes (default 1)
  --node-rank K      number of this machine, 0 to M - 1
  --master-addr A    name or address of machine 0

environment:
  TCH_CHECKPOINT_GRACE   seconds between SIGTERM and SIGKILL (default 10)
  TCH_CHECKPOINT_TOKEN   secret shared by the ranks (default: random; with --nodes the same on
                         all machines, and none by default)
  OMP_NUM_THREADS        threads per process (default 1)
USAGE
}

say() { printf 'torchrun.sh: %s\n' "$*" >&"$log"; }

bad_usage() {
    say "$*"
    usage >&2
    exit 2
}

# is_number TEXT MIN MAX
is_number() { [[ $1 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($1 >= $2 && $1 <= $3)); }

parse_arguments() {
    local_size='' port='' nodes=1 node='' address=''
    while (($#)); do
        case $1 in
        -n | --master-port | --nodes | --node-rank | --master-addr)
            (($# > 1)) || bad_usage "$1 needs a value"
            case $1 in
            -n) local_size=$2 ;;
            --master-port) port=$2 ;;
            --nodes) nodes=$2 ;;
            --node-rank) node=$2 ;;
            --master-addr) address=$2 ;;
            esac
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*) bad_usage "unknown option $1" ;;
        *) break ;;
        esac
    done
    program=("$@")
    is_number "${local_size:-none}" 1 4096 || bad_usage "-n needs a number from 1 to 4096"
    [[ -z $port ]] || is_number "$port" 1 65535 || bad_usage "--master-port needs a port"
    is_number "${nodes:-none}" 1 65536 || bad_usage "--nodes needs a number from 1 to 65536"
    if ((nodes > 1)); then
        is_number "${node:-none}" 0 $((nodes - 1)) || bad_usage "--node-rank needs a number from 0 to $((nodes - 1))"
        [[ -n $address && -n $port ]] || bad_usage "--nodes needs --master-addr and --master-port"
    elif [[ ${node:-0} != 0 ]]; then
        bad_usage "--node-rank $node without --nodes"
    fi
    ((${#program[@]})) || bad_usage "no program given"
    # Not a function of this script.
    path=$(type -P -- "${program[0]}") || bad_usage "no program ${program[0]}"
    grace_s=${TCH_CHECKPOINT_GRACE:-10}
    is_number "$grace_s" 0 86400 || bad_usage "TCH_CHECKPOINT_GRACE needs whole seconds, not $grace_s"
}

# Below the range from which the system takes ports for outgoing connections.
free_port() {
    local candidate
    for _ in {1..100}; do
        candidate=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || {
            echo "$candidate"
            return
        }
    done
    say 'found no free port; give one with --master-port'
    return 1
}

random_token() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

start_ranks() {
    local rank local_rank end_with_us=()
    # Ranks that outlived a launcher which was killed would go on saving beside the next job.
    if setpriv --pdeathsig KILL true 2>/dev/null; then end_with_us=(setpriv --pdeathsig KILL); fi
    export WORLD_SIZE=$((nodes * local_size)) LOCAL_WORLD_SIZE=$local_size
    export MASTER_ADDR=${address:-127.0.0.1} MASTER_PORT=$port
    # Other machines could not know a random one.
    if ((nodes == 1)); then export TCH_CHECKPOINT_TOKEN=${TCH_CHECKPOINT_TOKEN:-$(random_token)}; fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # Of a torchrun further up, which does not know these ranks.
    unset TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_RUN_ID
    for ((local_rank = 0; local_rank < local_size; local_rank++)); do
        rank=$((node * local_size + local_rank))
        RANK=$rank LOCAL_RANK=$local_rank "${end_with_us[@]}" "$path" "${program[@]:1}" </dev/null {idle}>&- {log}>&- &
        pids[rank]=$!
    done
}

# signal_groups NAME: to every rank and its children
signal_groups() {
    local pid
    for pid in "${pids[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null; done
}

# Whether a rank or a child of one lives. A zombie does not: where the first process of a
# container takes no care of orphans, it stays for ever.
any_left() {
    local pid groups=' ' stat state parent group
    ((${#running[@]})) && return 0
    for pid in "${pids[@]}"; do
        kill -0 -- "-$pid" 2>/dev/null && groups+="$pid "
    done
    [[ $groups != ' ' ]] || return 1
    [[ -r /proc/self/stat ]] || return 0
    for stat in /proc/[0-9]*/stat; do
        read -r stat <"$stat" || continue
        # pid (name, which may hold anything) state parent group …
        read -r state parent group _ <<<"${stat##*) }"
        [[ $state != [ZX] && $groups == *" $group "* ]] && return 0
    done
    return 1
}

# Ends what is left, at the latest after the grace period. A second signal means "at once" to a
# rank that is saving because of a first one, so there is none.
end_ranks() {
    ending=1
    ((interrupted)) || signal_groups TERM
    deadline=${deadline:-$((SECONDS + grace_s))}
}

now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# A helper of a rank may take SIGUSR1 as its death, so only the rank itself gets it.
forward() {
    local signal=$1 pid
    if [[ $signal == USR1 ]]; then
        for pid in "${running[@]}"; do kill -s USR1 "$pid" 2>/dev/null; done
    elif ((interrupted && $(now_ms) - interrupted < AGAIN_MS)); then
        : # A terminal that goes sends several, and timeout(1) tells its child and then its group.
    elif ((interrupted)); then
        say "SIG$signal again: killing all ranks"
        deadline=$((SECONDS - 1))
    elif ((ending)); then
        # Ranks that were told to end because one has failed would take it as a second one.
        say "SIG$signal: ranks are being ended already"
        interrupted=$(now_ms)
    else
        say "SIG$signal: forwarded to all ranks; killing what is left after $grace_s s"
        interrupted=$(now_ms)
        signal_groups "$signal"
        deadline=$((SECONDS + grace_s))
    fi
}

forward_received() {
    local signal
    while ((${#received[@]})); do
        signal=${received[0]}
        received=("${received[@]:1}") # one command: a signal meanwhile is not lost
        forward "$signal"
    done
}

reason() {
    if (($1 == WANTS_REQUEUE)); then
        echo ' (saved, wants a requeue)'
    elif (($1 > 128)) && kill -l "$1" >/dev/null 2>&1; then
        echo " (SIG$(kill -l "$1"))"
    fi
}

# Takes note of ranks that have ended; sets `result` to the code of the first that failed.
collect() {
    local rank code first_round=$((result == 0))
    for rank in "${!running[@]}"; do
        kill -0 "${running[rank]}" 2>/dev/null && continue
        wait "${running[rank]}" 2>/dev/null
        code=$?
        # An unrelated process may get the number of a group that is gone.
        kill -0 -- "-${running[rank]}" 2>/dev/null || unset "pids[$rank]"
        unset "running[$rank]"
        ((code == 0)) && continue
        # Of failures seen at once, a lost peer is the consequence and not the cause.
        if ((result == 0 || (first_round && result == PEER_LOST))); then result=$code; fi
        ((ending || interrupted)) || say "rank $rank ended with code $code$(reason "$code")"
    done
}

supervise() {
    running=("${pids[@]}")
    while any_left; do
        forward_received
        collect
        if ((!ending && (${#running[@]} == 0 || (result != 0 && result != WANTS_REQUEUE)))); then
            end_ranks
        elif ((!ending && result == WANTS_REQUEUE)) && [[ -z $deadline ]]; then
            # All ranks agreed to save and stop; those that are not done yet need no signal.
            deadline=$((SECONDS + grace_s))
        fi
        if [[ -n $deadline ]] && ((SECONDS > deadline)); then signal_groups KILL; fi
        if [[ -n $deadline ]] && ((SECONDS > deadline + UNKILLABLE_S)); then
            say "SIGKILL does not end these processes (hung file system?): ${pids[*]}"
            exit $((result ? result : 1))
        fi
        read -r -t "$POLL_S" -u "$idle"
    done
}

exec {log}>&2
parse_arguments "$@"
port=${port:-$(free_port)} || exit 1
pids=() running=() received=() deadline='' result=0 ending=0 interrupted=0
# Never readable: a pause that a signal ends and that needs no process.
exec {idle}<> <(:)
trap 'received+=(TERM)' TERM HUP QUIT
trap 'received+=(INT)' INT
trap 'received+=(USR1)' USR1
trap 'signal_groups KILL' EXIT
start_ranks
supervise 2>/dev/null # where the shell itself reports every process that it killed
pids=()
exit "$result"
