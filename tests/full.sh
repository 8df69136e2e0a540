#!/usr/bin/env bash
# The long tier of the tests about crashes and the world around a job, and the figures that they
# report.
#
#   tests/full.sh [TEST...]     which (default: all of those below); `async` are the models of what
#                               runs beside training, which are unit tests
#   tests/full.sh fuzz          every fuzz target for TCH_CHECKPOINT_FUZZ_SECONDS (default: 600)
#   tests/full.sh sanitizers    the core under the sanitizers for addresses, leaks and threads
#   tests/full.sh mutants       small changes of the code, each of which a test has to notice; hours
#
# Needs root, strace, loop devices, FUSE and nbdkit: `launch/setup.sh --tests` installs what can be.
# TCH_CHECKPOINT_TEST_WITHOUT=NAME,... opts out of what cannot be had; that is said at the end.
# Takes about an hour on two cores, by the sum of its parts. Output of each test goes to target/full/<test>.log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly FEATURES=cli,sabotage
readonly FEATURES_ALL=mpi,nccl,cli,drive,sabotage
readonly LOGS=target/full
all=(sim it syscalls kills power memory cli hostile world preempt ranks async)
tests=("${@:-${all[@]}}")
export TCH_CHECKPOINT_TEST_TIER=full

# How a test is run that is none of cargo's.
command_of() {
  case $1 in
    fuzz) echo env TCH_CHECKPOINT_FUZZ_SEED=0 tests/fuzz/run.sh "${TCH_CHECKPOINT_FUZZ_SECONDS:-600}" ;;
    sanitizers) echo tests/sanitizers.sh ;;
    mutants) echo tests/mutants.sh ;;
  esac
}
is_cargos() { [ -z "$(command_of "$1")" ]; }

launch/setup.sh --tests || [ -n "${TCH_CHECKPOINT_TEST_WITHOUT:-}" ] || exit 1
mkdir -p "$LOGS"
# Optimised: the simulator alone runs through a million schedules.
for name in "${tests[@]}"; do
  is_cargos "$name" || continue
  cargo test --release --no-default-features --features "$FEATURES" --no-run || exit 1
  break
done
# Jobs that are told to end, and ranks of each launcher, train: these need libtorch and MPI.
if [[ " ${tests[*]} " =~ \ (preempt|ranks)\  ]]; then
  cargo build --features "$FEATURES_ALL" --bins --examples || exit 1
fi

failed=()
for name in "${tests[@]}"; do
  began=$SECONDS code=0
  printf '== %s\n' "$name"
  # The tests' own threads, or a system with two cores, are the bound: one test after the other
  # where each uses the machine for itself.
  threads=2
  how=(--release --no-default-features --features "$FEATURES") target=(--test "$name") filter=()
  case $name in
    sim | power) threads=1 ;;
    preempt | ranks) how=(--features "$FEATURES_ALL") ;;
    async) target=(--lib) filter=(::model::) ;;
  esac
  if is_cargos "$name"; then
    timeout --kill-after=10 7200 cargo test --quiet "${how[@]}" "${target[@]}" -- --nocapture \
      --test-threads="$threads" ${filter[@]+"${filter[@]}"} >"$LOGS/$name.log" 2>&1 || code=$?
  else
    # Words of ours.
    # shellcheck disable=SC2046
    timeout --kill-after=10 86400 $(command_of "$name") >"$LOGS/$name.log" 2>&1 || code=$?
  fi
  grep -hE '^test result:' "$LOGS/$name.log" || true
  [ $code = 0 ] || { failed+=("$name"); tail -n 20 "$LOGS/$name.log"; }
  printf '== %s: %s, %s s\n' "$name" "$([ $code = 0 ] && echo ok || echo "FAILED ($code)")" \
    $((SECONDS - began))
done

logs=("${tests[@]/#/$LOGS/}")
printf '\nfigures\n'
grep -hoE 'figure: .*' "${logs[@]/%/.log}" | sed 's/^figure: /  /' | sort -u
skipped=$(grep -hoE 'SKIPPED.*' "${logs[@]/%/.log}" | sort | uniq -c)
[ -z "$skipped" ] || printf '\nnot run\n%s\n' "$skipped"
[ ${#failed[@]} -eq 0 ] || { printf '\nfailed: %s\n' "${failed[*]}"; exit 1; }
printf '\nall passed in %s s\n' "$SECONDS"
