# shellcheck shell=bash
# Part of launch_tpu.sh: installs on every worker, runs the command there, watches it, brings back what it wrote.
# shellcheck disable=SC2154 # the variables are those of launch_tpu.sh

jobs=()

# Runs a function in a process group of its own, which Ctrl-C does not reach: forget_jobs ends it with its gcloud.
background() {
  set -m
  "$@" &
  set +m
  jobs+=($!)
}

forget_jobs() {
  local job
  for job in "${jobs[@]}"; do kill -TERM -- "-$job" 2> /dev/null || true; done
  jobs=()
}

# each FUNCTION ARGUMENTS: the function for every slice at once, with the slice's number as its last argument. Output goes
# to FUNCTION.SLICE in the scratch directory. Fails if one of them failed.
each() {
  local slice job failed=0 started=()
  for slice in "${!nodes[@]}"; do
    if $dry_run; then
      "$@" "$slice"
      continue
    fi
    background "$@" "$slice" > "$scratch/$1.$slice" 2> "$scratch/$1.$slice.errors"
    started+=($!)
  done
  for job in "${started[@]}"; do wait "$job" || failed=1; done
  jobs=()
  return "$failed"
}

# connect SLICE WORKER COMMAND: on a worker, or on all. A dead connection is noticed in two minutes.
connect() {
  vm ssh "${nodes[$1]}" --worker="$2" --quiet "${connect_flags[@]}" --ssh-flag=-oServerAliveInterval=30 \
    --ssh-flag=-oServerAliveCountMax=4 --command="$3"
}

# remote SLICE WORKER ACTION ...: tools/tpu_worker.sh there.
remote() { connect "$1" "$2" "bash tpu_worker.sh $(quote "${@:3}")"; }

# copy WORKER FROM ... TO
copy() {
  cloud compute tpus tpu-vm scp "${@:2}" --project "$project" --zone "$zone" --worker="$1" --quiet "${connect_flags[@]}"
}

copy_here() { copy "$2" "${nodes[$1]}:$3" "$4"; }
# Nothing runs on a worker on which nothing was ever installed: so it answers, with nothing to say.
report() { connect "$1" all "test ! -e tpu_worker.sh || bash tpu_worker.sh status"; }
probe() { remote "$2" all installed "$1"; }
halt() { remote "$3" all halt "$1" "$2"; }
stop() { remote "$2" all stop "$1"; }

put() {
  copy all "$scratch/vlm-jax.tar.gz" "$scratch/tpu_worker.sh" "${nodes[$2]}:" && remote "$2" all install "$1"
}

here() { if $dry_run; then quote "$@" >&3; else "$@"; fi; }

# The commit is that of the launcher's start, so that a restart days later goes on with the same code; the worker script
# is that commit's too. A worker that has it already is left alone.
install() {
  local slice
  if each probe "$commit" && ! $dry_run; then
    say "commit ${commit:0:10} is installed there already"
    return
  fi
  say "installing commit ${commit:0:10} on every worker of ${nodes[*]}: some minutes the first time"
  here git archive --format=tar.gz --output="$scratch/vlm-jax.tar.gz" "$commit"
  here tar -xzf "$scratch/vlm-jax.tar.gz" -C "$scratch" --strip-components=1 tools/tpu_worker.sh
  if each put "$commit"; then return; fi
  for slice in "${!nodes[@]}"; do
    grep '^worker ' "$scratch/put.$slice" | sed "s/^/${nodes[slice]} /" >&2 || true
  done
  if grep -q '^worker ' "$scratch"/put.*; then exit 1; fi
  say "could not reach every worker: $(last_line "$scratch"/put.*)"
  return 1
}

command_key() { quote "${command[@]}" | git hash-object --stdin | cut -c 1-12; }
new_attempt() { echo "$(command_key)-$(date +%s)"; }

# Sets attempt to what runs on the workers, if anything does; another command there is the user's to decide about. Who
# does not answer may be running something, so they are asked until they do, or are taken away, which fails.
find_attempt() {
  local line='' installed answered
  while true; do
    answered=true
    each report || answered=false
    if $dry_run; then return; fi
    line=$(grep -h -m 1 '^worker [0-9]* running ' "$scratch"/report.* | head -n 1) || true
    if [[ -n $line ]]; then break; fi
    if $answered; then return; fi
    say "not every worker of ${nodes[*]} answers ($(last_line "$scratch"/report.*.errors)), and the command may be running there:" \
      "asking again"
    sleep 20
    if [[ $(overall_state) != READY ]]; then return 1; fi
  done
  read -r _ _ _ attempt installed line <<< "$line"
  if [[ ${attempt%-*} != "$(command_key)" ]]; then
    # shellcheck disable=SC2034
    made=false # nor is it this call's to delete
    wrong "another command is running on $name: $line; wait for it, or end it with --stop"
  fi
  say "the command is running there already, with commit ${installed:0:10}: watching it"
  if [[ $installed != "$commit" ]]; then say "if it must be started again, that will be with commit ${commit:0:10}"; fi
}

# Sets hosts (so many workers in each slice), workers (in all) and coordinator (the address of the first).
find_hosts() {
  local slice found
  hosts=() workers=0 coordinator=''
  for slice in "${!nodes[@]}"; do
    read -r -a found <<< "$(addresses "${nodes[slice]}")"
    coordinator=${coordinator:-${found[0]}}
    hosts+=("${#found[@]}")
    ((workers += ${#found[@]}))
  done
}

# Several slices find each other through libtpu's variables: worker 0 of the first slice coordinates.
begin() {
  local attempt=$1 slice=$2 how=anew environment=()
  if $begun; then how=again; fi
  if ((slices > 1)); then
    environment=(env "MEGASCALE_COORDINATOR_ADDRESS=$coordinator" "MEGASCALE_NUM_SLICES=$slices" "MEGASCALE_SLICE_ID=$slice")
  fi
  remote "$slice" all start "$attempt" "$how" "${environment[@]}" "${command[@]}"
}

# Shows worker 0's log line by line. gcloud repeats a command whose connection broke, so lines are numbered and none is
# shown twice.
show_log() {
  local attempt=$1 seen=0 from line number
  while true; do
    from=$seen
    while IFS= read -r line; do
      if [[ $line == end: ]]; then return; fi
      number=${line%%:*}
      if [[ $number =~ ^[0-9]+$ ]] && ((from + number > seen)); then
        ((seen = from + number))
        printf '%s\n' "${line#*:}"
      fi
    done < <(remote 0 0 stream "$attempt" "$((seen + 1))" 2> /dev/null)
    if $dry_run; then return; fi
    sleep 5
  done
}

# Writes "SLICE WORKER CODE [stopped]" into $scratch/codes as workers end; "SLICE - gone" when the machines are no longer there.
watch_slice() {
  local attempt=$1 slice=$2 word worker code state
  while true; do
    while read -r word worker code; do # and the mark, if there is one
      if [[ $word == worker ]]; then echo "$slice $worker $code" >> "$scratch/codes"; fi
    done < <(remote "$slice" all wait "$attempt" 2> "$scratch/watch.$slice")
    if $dry_run || (($(grep "^$slice " "$scratch/codes" | sort -u -k 2,2 | wc -l) >= hosts[slice])); then return; fi
    state=$(describe vm "${nodes[slice]}" state)
    case $state in
      ABSENT | PREEMPTED | TERMINATED | STOPP* | DELETING | HID*)
        say "${nodes[slice]} is $state"
        echo "$slice - gone" >> "$scratch/codes"
        return
        ;;
    esac
    say "the connection to ${nodes[slice]} is broken ($(reason "$scratch/watch.$slice")); the command goes on; trying again"
    sleep 10
  done
}

# Sets ended (so many workers have), result (0; 75 if one asks for a restart; the first fault's code), culprit ("SLICE
# WORKER" of that fault), lost, gone, and stopped (the user wanted it so). Where a machine was taken away the others fail for want of it, so that is a
# restart and no fault of theirs.
read_codes() {
  local slice worker code mark seen=' '
  ended=0 result=0 gone=false lost=false culprit=''
  while read -r slice worker code mark; do
    if [[ $seen == *" $slice.$worker "* ]]; then continue; fi
    seen+="$slice.$worker "
    ((++ended))
    if [[ $mark == stopped ]]; then stopped=true; fi
    case $code in
      0) ;;
      gone) gone=true lost=true ;;
      lost) lost=true ;;
      75) if ((result == 0)); then result=75; fi ;;
      *) if [[ -z $culprit ]]; then result=$code culprit="$slice $worker"; fi ;;
    esac
  done < "$scratch/codes"
  if $lost; then result=75 culprit=''; fi
}

# One attempt, from start to end on all workers; returns its exit code.
follow_attempt() {
  local attempt=$1 slice log ended result gone lost culprit
  : > "$scratch/codes"
  say "running on $workers workers of ${nodes[*]}: ${command[*]}"
  if ! each begin "$attempt"; then
    say "could not start everywhere: $(last_line "$scratch"/begin.*)"
    if grep -q '^worker [0-9]*: ended by --stop' "$scratch"/begin.*; then stopped=true; fi
    each halt 60 "$attempt" || true
    return 75
  fi
  begun=true
  if $dry_run; then
    each watch_slice "$attempt"
    show_log "$attempt"
    return 0
  fi
  for slice in "${!nodes[@]}"; do background watch_slice "$attempt" "$slice"; done
  background show_log "$attempt"
  log=$!
  await_end
  await_log "$log"
  if [[ -n $culprit && $(overall_state) != READY ]]; then result=75 culprit=''; fi
  forget_jobs
  if [[ -n $culprit ]]; then
    show_fault "$attempt"
  elif ((result == 75)) && ! $stopped && ! $gone; then
    say "$($lost && echo "a worker lost the command" || echo "the command saved and asks to be started again")"
  fi
  return "$result"
}

# Until every worker has ended. What is left of a run is told to end: at once after a fault or a loss, and after ten
# minutes where others asked for a restart, since all save together.
await_end() {
  local since='' told=false patience
  while true; do
    sleep 1
    read_codes
    if ((ended >= workers)) || $gone; then return; fi
    if ((result == 0)); then continue; fi
    since=${since:-$SECONDS}
    patience=600
    if [[ -n $culprit ]] || $lost; then patience=0; fi
    if ! $told && ((SECONDS - since >= patience)); then
      told=true
      say "ending the command on the other workers"
      each_quietly halt 60 "$attempt"
    fi
    if ((SECONDS - since > patience + 180)); then
      say "some workers did not answer"
      return
    fi
  done
}

# Without waiting, and without forgetting the jobs that watch.
each_quietly() {
  local slice
  for slice in "${!nodes[@]}"; do background "$@" "$slice" > /dev/null 2>&1; done
}

# Worker 0's log may still be on its way; it says itself when it is over.
await_log() {
  local tries
  if $gone; then return; fi
  for ((tries = 0; tries < 60; tries++)); do
    kill -0 "$1" 2> /dev/null || return 0
    sleep 1
  done
}

show_fault() {
  local attempt=$1 slice worker batch=()
  say "worker ${culprit#* } of ${nodes[${culprit% *}]} failed with $result; fetching all logs to runs/$name/logs"
  mkdir -p "runs/$name/logs"
  for slice in "${!nodes[@]}"; do
    for ((worker = 0; worker < hosts[slice]; worker++)); do
      background copy_here "$slice" "$worker" "vlm-jax-run/$attempt.log" \
        "runs/$name/logs/slice-$slice-worker-$worker.log" > /dev/null 2>&1
      batch+=($!)
      if ((${#batch[@]} == 8)); then
        wait "${batch[@]}" || true
        batch=()
      fi
    done
  done
  wait "${batch[@]}" || true
  jobs=()
  if [[ $culprit != "0 0" ]]; then
    tail -n 20 "runs/$name/logs/slice-${culprit% *}-worker-${culprit#* }.log" | sed 's/^/   /' >&2 || true
  fi
}

# The value of --workdir among the words of a command.
workdir() {
  while (($#)); do
    case $1 in
      --workdir) echo "${2-}"; return ;;
      --workdir=*) echo "${1#*=}"; return ;;
    esac
    shift
  done
}

# Reports of a command's workdir, or of what the workers run, into runs/NAME.
fetch() {
  local from file got=0
  if (($#)); then
    from=$(workdir "$@")
  else
    from=$(remote 0 0 workdir 2> "$scratch/fetch") || true
    if $dry_run; then from=WORKDIR-OF-THE-COMMAND; fi
  fi
  if [[ -z $from ]]; then
    say "no --workdir is known, so there are no reports to fetch"
    return 1
  fi
  $dry_run || mkdir -p "runs/$name"
  if [[ $from == gs://* ]]; then
    for file in report.html metrics.jsonl eval.json config.json; do
      if cloud storage cp "${from%/}/$file" "runs/$name/" --project "$project" > /dev/null 2> "$scratch/fetch"; then got=1; fi
    done
  elif remote 0 0 reports "$from" > "$scratch/fetch" 2>&1 &&
    copy_here 0 0 vlm-jax-run/reports.tar.gz "$scratch/reports.tar.gz" > "$scratch/fetch" 2>&1; then
    $dry_run || tar -xzf "$scratch/reports.tar.gz" -C "runs/$name"
    got=1
  fi
  if ((got == 0)); then
    say "no reports fetched from $from: $(reason "$scratch/fetch")"
    return 1
  fi
  say "reports of $from are in runs/$name"
}
