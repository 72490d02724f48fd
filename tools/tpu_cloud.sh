# shellcheck shell=bash
# Part of launch_tpu.sh: asks Google Cloud for a TPU, waits for it, deletes it. Every call names the project and the zone.
# shellcheck disable=SC2154 # the variables are those of launch_tpu.sh

pretended=ABSENT # the state under --dry-run

# Words as a shell would have to read them, with quotes only where they are needed.
quote() {
  local word out=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then out+=("$word"); else out+=("${word@Q}"); fi
  done
  echo "${out[*]}"
}

# gcloud must not read the answers that are meant for this script.
cloud() {
  if $dry_run; then quote gcloud "$@" >&3; else gcloud "$@" < /dev/null; fi
}

vm() { cloud compute tpus tpu-vm "$1" "$2" --project "$project" --zone "$zone" "${@:3}"; }

queue() {
  local track=()
  if [[ $1 == create && ${tier[*]-} == --best-effort ]]; then track=(alpha); fi
  cloud "${track[@]}" compute tpus queued-resources "$1" "$2" --project "$project" --zone "$zone" "${@:3}"
}

# The one line of gcloud's error output that says why.
reason() {
  local line
  line=$(grep -oE '"message": *"[^"]*"' "$1" | head -n 1 | sed 's/^"message": *"//; s/"$//') || true
  if [[ -z $line ]]; then line=$(grep -m 1 ERROR "$1" | sed 's/^ERROR: *//') || true; fi
  if [[ -z $line ]]; then line=$(tail -n 1 "$1"); fi
  echo "${line:-gcloud gave no reason}"
}

last_line() { cat "$@" | grep -v '^$' | tail -n 1; }

# describe vm|queue NAME FORMAT: prints what gcloud says, ABSENT where there is no such thing. An unreachable service is
# not an absent TPU: what was seen once is asked for until there is an answer.
describe() {
  local errors
  errors=$(mktemp "$scratch/describe.XXXX")
  while true; do
    if "$1" describe "$2" --format="value($3)" 2> "$errors"; then
      if $dry_run; then echo "$pretended"; fi
      return
    fi
    if grep -qiE 'NOT_FOUND|not found' "$errors"; then
      echo ABSENT
      return
    fi
    say "gcloud cannot tell about $2: $(reason "$errors")"
    $made || $obtained || return 1
    sleep 30
  done
}

# The state of the queued resource until it is active; then READY if every slice is, or that of the first which is not;
# INCOMPLETE where an active one has no such slice.
overall_state() {
  local node state
  if $queued; then
    state=$(describe queue "$name" state.state) || return 1
    if [[ $state != ACTIVE && $state != READY ]]; then
      echo "$state"
      return
    fi
  fi
  for node in "${nodes[@]}"; do
    state=$(describe vm "$node" state) || return 1
    if [[ $state == ABSENT ]] && $queued; then state=INCOMPLETE; fi
    if [[ $state != READY ]]; then
      echo "$state"
      return
    fi
  done
  echo READY
}

# The names of what this script makes and deletes.
what() {
  if $queued && [[ $mode == down ]]; then
    echo "the queued resource $name with every TPU it made"
  elif ((slices > 1)); then
    echo "the queued resource $name with its TPUs ${nodes[*]}"
  elif $queued; then
    echo "the queued resource $name with its TPU $name"
  else
    echo "the TPU $name"
  fi
}

ask() {
  local answer=''
  if $yes || $dry_run; then return; fi
  printf '%s [y/N] ' "$1" >&2
  read -r -t 600 answer || true
  printf '\n' >&2
  [[ $answer == [yY]* ]]
}

# What bears the name already is what will be watched and deleted, whatever the flags ask for.
find_kind() {
  local state
  state=$(describe queue "$name" state.state) || exit 1
  if [[ $state != ABSENT ]]; then
    queued=true
  elif $queued && ((slices == 1)); then
    state=$(describe vm "$name" state) || exit 1
    if [[ $state != ABSENT ]]; then queued=false; fi
  fi
}

create() {
  queued=$ask_queued # what was there may have been of the other kind
  local flags=(--accelerator-type="$accelerator" "${tier[@]}" "${create_flags[@]}") kind=vm
  say "making $(what) (${slices} x $accelerator ${tier[*]-}), in $here"
  made=true
  # shellcheck disable=SC2034 # for launch_tpu.sh
  fresh=true
  if $queued; then
    kind=queue
    flags+=(--runtime-version="$version")
    if ((slices > 1)); then
      flags+=(--node-count="$slices" --node-prefix="$name")
    else
      flags+=(--node-id="$name")
    fi
  else
    flags+=(--version="$version")
  fi
  if ! "$kind" create "$name" "${flags[@]}" > /dev/null 2> "$scratch/create"; then
    refused "$(reason "$scratch/create")"
    return 1
  fi
  pretended=READY
}

refused() {
  say "$(what) was refused: $1"
  if [[ $(overall_state) != ABSENT ]]; then remove; fi
  # shellcheck disable=SC2034
  made=false fresh=false
}

remove() {
  say "deleting $(what), in $here"
  if $queued; then
    queue delete "$name" --force --quiet > /dev/null 2> "$scratch/delete" || removal_failed
  else
    vm delete "$name" --quiet > /dev/null 2> "$scratch/delete" || removal_failed
  fi
  pretended=ABSENT
}

removal_failed() {
  if ! grep -qiE 'NOT_FOUND|not found' "$scratch/delete"; then
    say "NOT deleted, and still billed: $(reason "$scratch/delete")"
    return 1
  fi
}

# Waits until every slice is ready; makes what is missing; fails if it is refused.
ensure() {
  local state before='' asked=false
  while true; do
    state=$(overall_state) || exit 1
    case $state in
      READY)
        made=true
        match_accelerator
        return
        ;;
      ABSENT)
        create || return 1
        asked=true
        ;;
      FAILED)
        if $asked; then
          queue describe "$name" --format='value(state.failedData.error.message)' > "$scratch/failed" 2>&1 || true
          refused "$(reason "$scratch/failed")"
          return 1
        fi
        say "the queued resource $name failed earlier, and holds no machine"
        remove || return 1
        ;;
      INCOMPLETE)
        # It lost a slice; or it never had it, and all that it has runs something: --slices may be another than the first time.
        if ! $asked && ! $obtained; then
          made=false
          wrong "the queued resource $name is there without all of ${nodes[*]}: is --slices $slices right? or use --down"
        fi
        say "$name lost one of its slices, so it is made anew"
        remove || return 1
        ;;
      PREEMPTED | TERMINATED | SUSPENDED)
        say "$name is $state: its machines are gone, so it is made anew"
        made=true
        remove || return 1
        ;;
      STOPPED)
        made=true
        start_stopped || return 1
        ;;
      *)
        made=true
        if [[ $state != "$before" ]]; then say "$name is $state: waiting"; fi
        sleep 15
        ;;
    esac
    before=$state
  done
}

start_stopped() {
  local node
  for node in "${nodes[@]}"; do
    if [[ $(describe vm "$node" state) != STOPPED ]]; then continue; fi
    say "$node is stopped: starting it"
    if ! vm start "$node" > /dev/null 2> "$scratch/create"; then
      say "$(reason "$scratch/create")"
      return 1
    fi
  done
}

match_accelerator() {
  local node type
  if $dry_run; then return; fi
  for node in "${nodes[@]}"; do
    type=$(describe vm "$node" acceleratorType)
    if [[ ${type##*/} != "$accelerator" ]]; then
      made=false
      wrong "$node is there and is a ${type##*/}, not a $accelerator: choose another --name, or delete it with --down"
    fi
  done
}

# The internal addresses of a slice's workers, the first one's first.
addresses() {
  local found
  if $dry_run; then
    vm describe "$1" --format='value(networkEndpoints[].ipAddress)'
    echo ADDRESS-OF-WORKER-0
    return
  fi
  found=$(describe vm "$1" 'networkEndpoints[].ipAddress')
  echo "${found//[;,]/ }"
}

# --down: whichever of the two bears the name, and nothing else.
down() {
  local state
  state=$(describe queue "$name" state.state) || exit 1
  if [[ $state == ABSENT ]] && ! { $dry_run && $queued; }; then
    queued=false nodes=("$name") slices=1
    state=$(describe vm "$name" state) || exit 1
    if [[ $state == ABSENT ]] && ! $dry_run; then
      say "there is no TPU and no queued resource $name in $here: nothing to delete"
      return
    fi
  else
    queued=true
  fi
  say "this deletes, in $here, with all that is on its disks: $(what) ($state)"
  if ! ask "Delete it?"; then
    say "nothing was deleted"
    return 1
  fi
  remove
}
