#!/usr/bin/env bash
# Runs one command on a Cloud TPU VM or slice, and again after a preemption. Everything is named by flags.
set -euo pipefail

usage() {
  cat << 'END'
usage: ./launch_tpu.sh --name NAME --project PROJECT --zone ZONE --accelerator TYPE [options] -- COMMAND ...

Makes a TPU VM (or slice) in your project unless one of that name is there, copies the last commit of this repository
to every host, installs it with the tpu extra, and runs COMMAND on every host. If COMMAND ends with 75 (saved and asked to be
restarted), or the TPU is taken away, it is started again, on a new TPU if need be. Keep the workdir in gs://, or it
goes with the machine. The gcloud command must be installed and logged in.

  --name NAME            of the TPU
  --project PROJECT      your Google Cloud project
  --zone ZONE            such as us-central2-b
  --accelerator TYPE     such as v4-8, v5litepod-8, v6e-8
  --version VERSION      runtime image (tpu-ubuntu2204-base)
  --spot                 preemptible capacity: cheaper, may be taken away
  --queued               ask by a queued resource and wait for it
  --max-restarts N       give up after so many restarts (100)
  --delete               delete the TPU when COMMAND has ended, whatever its exit code
  --dry-run              print the commands and run none
  --help                 this text

  ./launch_tpu.sh --name first --project my-project --zone us-central2-b --accelerator v4-8 --spot --delete -- \
    vlm train experiments/quickstart.py --workdir gs://my-bucket/quickstart
END
}

wrong() { printf 'launch_tpu.sh: %s; --help explains\n' "$*" >&2; exit 2; }
say() { printf '== %s\n' "$*" >&2; }

name= project= zone= accelerator= version=tpu-ubuntu2204-base
spot=false queued=false delete=false dry_run=false max_restarts=100

while (($#)); do
  case $1 in
    --name | --project | --zone | --accelerator | --version | --max-restarts)
      (($# > 1)) || wrong "$1 needs a value"
      variable=${1#--}
      printf -v "${variable//-/_}" '%s' "$2"
      shift 2
      ;;
    --spot) spot=true; shift ;;
    --queued) queued=true; shift ;;
    --delete) delete=true; shift ;;
    --dry-run) dry_run=true; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) wrong "unknown argument $1" ;;
  esac
done
for variable in name project zone accelerator; do
  [[ -n ${!variable} ]] || wrong "--$variable is missing"
done
[[ $max_restarts =~ ^[0-9]+$ ]] || wrong "--max-restarts is $max_restarts, not a number"
(($#)) || wrong "no command after --"
$dry_run || command -v gcloud > /dev/null || wrong "there is no gcloud command here"

cd "$(dirname "$0")"
where=(--project "$project" --zone "$zone")
tpus=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
printf -v quoted '%q ' "$@"

# Prints a command under --dry-run, runs it otherwise.
run() {
  if $dry_run; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

on_every_host() { run "${tpus[@]}" ssh "$name" "${where[@]}" --worker=all --command="$1"; }

state() {
  if $dry_run; then echo "ABSENT"; else
    "${tpus[@]}" describe "$name" "${where[@]}" --format='value(state)' 2> /dev/null || echo "ABSENT"
  fi
}

create() {
  local flags=()
  if $spot; then flags+=(--spot); fi
  if ! $queued; then
    run "${tpus[@]}" create "$name" "${where[@]}" --accelerator-type="$accelerator" --version="$version" "${flags[@]}"
    return
  fi
  run "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" --accelerator-type="$accelerator" \
    --runtime-version="$version" "${flags[@]}"
  $dry_run || until [[ $(state) == READY ]]; do
    case $("${queue[@]}" describe "$name" "${where[@]}" --format='value(state.state)') in
      FAILED | SUSPENDED) say "the queued resource $name was refused"; exit 1 ;;
    esac
    sleep 30
  done
}

remove() {
  if $queued; then
    run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet || true
  else
    run "${tpus[@]}" delete "$name" "${where[@]}" --quiet || true
  fi
}

install() {
  local archive
  archive=$(mktemp -d)/vlm-jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  run "${tpus[@]}" scp "$archive" "$name:vlm-jax.tar.gz" "${where[@]}" --worker=all
  rm -rf "$(dirname "$archive")"
  on_every_host 'set -e; mkdir -p vlm-jax; tar -xzf vlm-jax.tar.gz -C vlm-jax; cd vlm-jax
python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" && python=python3 || python=python3.11
command -v $python > /dev/null || sudo apt-get install -y python3.11
$python -c "import ensurepip" 2> /dev/null || sudo apt-get install -y $python-venv
$python -m venv .venv
.venv/bin/pip install --quiet --constraint requirements/base.lock --editable ".[tpu]"'
}

# Where the connection broke, the command may still be running: the lock lets the next attempt wait for its end.
attempt() {
  local remote="cd vlm-jax; PATH=\$PWD/.venv/bin:\$PATH flock .lock $quoted; echo \"exit code on \$HOSTNAME: \$?\""
  if $dry_run; then on_every_host "$remote"; return; fi
  local output code result=75
  output=$(mktemp)
  on_every_host "$remote" 2>&1 | tee "$output" >&2 || true
  # No code at all: the connection broke. One 75: restart. One fault: stop with it.
  for code in $(sed -n 's/^.*exit code on [^:]*: \([0-9]*\).*$/\1/p' "$output" | sort -n -u); do
    case $code in
      0) result=0 ;;
      75) result=75 ;;
      *) result=$code; break ;;
    esac
  done
  rm -f "$output"
  return "$result"
}

if $delete; then trap remove EXIT; fi
restarts=0
fresh=true
while true; do
  now=$(state)
  if [[ $now != READY ]]; then
    if [[ $now != ABSENT ]]; then say "$name is $now: making a new one"; remove; fi
    create
    fresh=true
  fi
  if $fresh; then install; fi
  code=0
  attempt || code=$?
  if ((code != 75)); then break; fi
  ((++restarts <= max_restarts)) || { say "still not done after $max_restarts restarts"; break; }
  say "saved or taken away: restart $restarts"
  fresh=false
  sleep 10
done
exit "$code"
