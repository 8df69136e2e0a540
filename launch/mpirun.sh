#!/usr/bin/env bash
# Starts N processes of a program under MPI, also as root and on fewer cores than processes.
# See launch/README.md for the variables, signals and exit codes.
set -eu

usage() {
    cat <<'USAGE'
usage: launch/mpirun.sh -n N [--host LIST | --hostfile FILE] PROGRAM [ARGUMENT...]

  -n N             number of processes
  --host LIST      machines, as mpirun takes them: a:4,b:4
  --hostfile FILE  a file of machines, as mpirun takes it

environment:
  OMP_NUM_THREADS  threads per process (default 1)
USAGE
}

bad_usage() {
    printf 'mpirun.sh: %s\n' "$*" >&2
    usage >&2
    exit 2
}

world_size='' hosts=()
while (($#)); do
    case $1 in
    -n | --host | --hostfile)
        (($# > 1)) || bad_usage "$1 needs a value"
        if [[ $1 == -n ]]; then world_size=$2; else hosts+=("$1" "$2"); fi
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
[[ $world_size =~ ^[1-9][0-9]{0,5}$ ]] || bad_usage '-n needs a number above 0'
(($#)) || bad_usage 'no program given'
if ! command -v mpirun >/dev/null; then
    echo 'mpirun.sh: there is no mpirun; install an MPI with launch/setup.sh (or: apt-get install openmpi-bin libopenmpi-dev)' >&2
    exit 1
fi

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# More processes than cores: Open MPI 4, then 5.
export OMPI_MCA_rmaps_base_oversubscribe=1
export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Other machines get only what is named.
exported=()
if ((${#hosts[@]})) || ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
    for name in $(compgen -e); do
        case $name in
        TCH_CHECKPOINT_* | RUST_* | NCCL_* | OMP_NUM_THREADS | LD_LIBRARY_PATH) exported+=(-x "$name") ;;
        esac
    done
fi

exec mpirun -n "$world_size" --bind-to none "${hosts[@]}" "${exported[@]}" "$@"
