#!/usr/bin/env bash
# What launch_tpu.sh runs on every worker of a TPU. gcloud repeats a remote command whose connection broke, so each of
# these may be called again at any moment and then does no more than the first call did.
#
#   installed STAMP             succeeds if exactly that is installed
#   install STAMP               unpacks ~/vlm-jax.tar.gz and installs the locked environment; prints the end of the log on failure
#   start ATTEMPT anew|again COMMAND ...   starts the command, detached from the connection; `again` not after a `stop`
#   wait ATTEMPT                blocks until it has ended; prints "worker N CODE", with `lost` for CODE where it left none,
#                               and " stopped" after that if the user had it stopped
#   stream ATTEMPT LINE         prints the log from that line on, each as "COUNT:TEXT", and "end:" when the command has ended
#   status                      prints "worker N running|idle ATTEMPT STAMP COMMAND"
#   workdir                     prints the --workdir of the last command
#   halt SECONDS ATTEMPT        SIGTERM, and SIGKILL if that did not end it in time; nothing if another attempt runs
#   stop SECONDS                the same for whatever runs, because the user says so: leaves a mark until the next start
#   reports WORKDIR             collects what there is to read in the workdir, in ~/vlm-jax-run/reports.tar.gz
set -euo pipefail

tree=$HOME/vlm-jax state=$HOME/vlm-jax-run
mkdir -p "$tree" "$state"
# Held by everything that belongs to the run, so free exactly when all of it has ended, also after a reboot.
lock=$state/lock

# This worker's place in its slice, from the TPU VM's metadata server.
worker_number() {
  local url=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number number
  number=$(curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' "$url") || number=${HOSTNAME##*-w-}
  [[ $number =~ ^[0-9]+$ ]] || number=0
  echo "$number"
}

content() { if [[ -f $state/$1 ]]; then cat "$state/$1"; fi; }
fail() { printf 'worker %s: %s\n' "$(worker_number)" "$*"; exit 1; }
running() { ! flock --nonblock --shared "$lock" true; }

installed() { [[ $(content installed) == "$1" ]]; }

install() {
  exec 8> "$state/install.lock"
  flock 8
  if installed "$1"; then return; fi
  if running; then fail "a command is running, so nothing can be installed"; fi
  if ! bash "$0" build "$1" > "$state/install.log" 2>&1; then
    tail -n 15 "$state/install.log" | sed "s/^/worker $(worker_number) | /"
    fail "could not install"
  fi
}

find_python() {
  local python
  for python in python3.11 python3.12 python3.13 python3; do
    if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$python"
      return
    fi
  done
  # A new machine may still be busy with its own updates.
  sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet >&2
  sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes python3.11 python3.11-venv >&2
  echo python3.11
}

build() {
  local python wanted
  rm -f "$state/installed"
  cd "$tree"
  # A module that this commit no longer has must not be importable. What runs wrote stays.
  if [[ -f $state/files ]]; then grep -v '/$' "$state/files" | tr '\n' '\0' | xargs -0 rm -f --; fi
  tar -tzf ~/vlm-jax.tar.gz > "$state/files"
  tar -xzf ~/vlm-jax.tar.gz
  python=$(find_python)
  wanted=$(cat requirements/base.lock requirements/tpu.lock <("$python" --version) | sha256sum)
  if [[ $(content environment) != "$wanted" ]]; then
    rm -rf .venv "$state/environment"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --requirement requirements/tpu.lock
    printf '%s\n' "$wanted" > "$state/environment"
  fi
  .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
  printf '%s\n' "$1" > "$state/installed"
}

start() {
  local attempt=$1 how=$2
  shift 2
  exec 9> "$lock"
  if [[ $(content attempt) == "$attempt" ]]; then return; fi
  if ! flock --timeout 10 9; then
    if [[ $(content attempt) == "$attempt" ]]; then return; fi
    fail "another command is running: $(content command)"
  fi
  # A launcher that starts it again may not have heard of the user's stop yet.
  if [[ $how == again && -f $state/stopped ]]; then fail "ended by --stop"; fi
  rm -f "$state/code" "$state/pid" "$state/stopped"
  : > "$state/$attempt.log"
  printf '%s\n' "$attempt" > "$state/attempt"
  printf '%q ' "$@" > "$state/command"
  workdir_of "$@" > "$state/workdir"
  setsid bash "$0" supervise "$attempt" "$@" < /dev/null > /dev/null 2>&1 &
  echo $! > "$state/supervisor"
}

# Leads the run's process group and outlives its command, whose end it records.
supervise() {
  local attempt=$1 code=0
  shift
  trap : TERM
  cd "$tree"
  PATH=$tree/.venv/bin:$PATH
  # shellcheck disable=SC2016 # for the inner shell
  bash -c 'echo $$ > "$0"; exec "$@"' "$state/pid" "$@" > "$state/$attempt.log" 2>&1 || code=$?
  echo "$code" > "$state/code.new"
  mv "$state/code.new" "$state/code"
  kill -KILL -- "-$$" # helpers that the command left behind would keep the chips
}

wait_for_end() {
  local code=lost mark=''
  flock --shared "$lock" true
  if [[ $(content attempt) == "$1" && -f $state/code ]]; then code=$(content code); fi
  if [[ -f $state/stopped ]]; then mark=' stopped'; fi
  echo "worker $(worker_number) $code$mark"
}

stream() {
  if [[ $(content attempt) == "$1" ]]; then
    tail -f -s 0.2 -n "+$2" --pid="$(content supervisor)" "$state/$1.log" | LC_ALL=C grep -a -n --line-buffered '' || true
  fi
  echo end:
}

status() {
  local now=idle stamp
  if running; then now=running; fi
  stamp=$(content installed)
  echo "worker $(worker_number) $now $(content attempt) ${stamp:-unknown} $(content command)"
}

workdir_of() {
  while (($#)); do
    case $1 in
      --workdir) echo "${2-}" ;;
      --workdir=*) echo "${1#*=}" ;;
    esac
    shift
  done
}

workdir() { content workdir; }

# halt SECONDS [ATTEMPT]
halt() {
  local tick told=false
  for ((tick = 5 * $1; ; tick--)); do
    if ! running || [[ -n ${2-} && $(content attempt) != "$2" ]]; then return; fi
    if ((tick <= 0)); then
      kill -KILL "$(content pid)" 2> /dev/null || true
      return
    fi
    if ! $told && [[ -s $state/pid ]]; then
      kill -TERM "$(content pid)" 2> /dev/null || true
      told=true
    fi
    sleep 0.2
  done
}

stop() {
  : > "$state/stopped"
  running || echo "worker $(worker_number): nothing was running"
  halt "$1"
}

reports() {
  local name names=()
  cd "$tree"
  cd "$1" 2> /dev/null || fail "there is no $1"
  for name in report.html metrics.jsonl eval.json config.json; do
    if [[ -f $name ]]; then names+=("$name"); fi
  done
  ((${#names[@]})) || fail "there are no reports in $1"
  tar -czf "$state/reports.tar.gz" "${names[@]}"
}

action=$1
shift
case $action in
  installed | install | build | start | supervise | stream | status | workdir | halt | stop | reports) "$action" "$@" ;;
  wait) wait_for_end "$@" ;;
  *) fail "unknown action $action" ;;
esac
