#!/usr/bin/env bash
# Runs one command on a Cloud TPU VM, pod slice or several slices, and again after a preemption. Everything is named by flags.
set -euo pipefail

usage() {
  cat << 'END'
usage: ./launch_tpu.sh --name NAME --project PROJECT --zone ZONE --accelerator TYPE [options] -- COMMAND ...
       ./launch_tpu.sh --stop | --fetch | --down  --name NAME --project PROJECT --zone ZONE [--slices N]

Makes a TPU in your project, or takes the one of that name; installs the last commit of this repository and its locked
environment on every worker; runs COMMAND on all of them; shows the log of worker 0. COMMAND runs detached: a broken
connection does not touch it, and the same command line watches it again. If it ends with 75 (saved and asked to be
restarted), or the TPU is taken away, it is started again, with the same commit, on a new TPU if need be. If it fails on
one worker, it is stopped on the others, and the logs of all come to runs/NAME/logs. At the end report.html,
metrics.jsonl and eval.json of its --workdir come to runs/NAME. Keep the workdir in gs://, or it goes with the machine;
several hosts need one that all of them see. gcloud must be installed and logged in. A TPU costs money until it is deleted.

  --name NAME            of the TPU; with several slices they are NAME-0, NAME-1, ...
  --project PROJECT      your Google Cloud project
  --zone ZONE            such as us-central2-b
  --accelerator TYPE     such as v4-8, v5litepod-16, v5p-128, v6e-256
  --slices N             so many slices of that type, joined by the data-centre network (1); asks by a queued resource
  --version VERSION      runtime image (the one for JAX on that type)
  --queued               ask by a queued resource and wait for it
  --spot                 spot capacity: cheaper, may be taken away at any time
  --reserved             from your reservation
  --best-effort          best-effort capacity (queued; needs the alpha commands of gcloud)
  --create-flag FLAG     handed on when the TPU is made, such as --network=mine or --valid-until-duration=6h; repeatable
  --connect-flag FLAG    handed on to ssh and scp of gcloud, such as --internal-ip; repeatable
  --max-restarts N       give up after so many restarts (100); waiting for capacity is none
  --delete               delete the TPU when COMMAND has ended, whatever its exit code; asks now, not then
  --yes                  do not ask before deleting
  --dry-run              print the commands and run none
  --stop                 end the running COMMAND with SIGTERM (it saves) and keep the TPU; a launcher that watches it ends, too,
                         and deletes the TPU if it was told to --delete
  --fetch                fetch the reports now; of the running COMMAND, or of the one given after --
  --down                 delete the TPU, or the queued resource with all its slices
  --help                 this text

Exit codes: those of COMMAND; 2 also for wrong input; 1 if the TPU was refused; 130 after Ctrl-C, which ends the watching only.

  ./launch_tpu.sh --name first --project my-project --zone us-central2-b --accelerator v4-8 --spot --delete -- \
    vlm train experiments/quickstart.py --workdir gs://my-bucket/quickstart
END
}

wrong() { printf 'launch_tpu.sh: %s; --help explains\n' "$*" >&2; exit 2; }
say() { printf '%s %s\n' "$($dry_run && echo '== (dry run)' || echo '==')" "$*" >&2; }

name='' project='' zone='' accelerator='' version='' slices=1 max_restarts=100
queued=false delete=false yes=false dry_run=false mode=run
made=false     # there is something that is billed
obtained=false # there was a TPU ready for use
fresh=false    # it was made by this call, and nothing was started on it
begun=false    # this call has started the command everywhere, or found it running
stopped=false  # by --stop
tier=() create_flags=() connect_flags=()

parse() {
  while (($#)); do
    case $1 in
      --name | --project | --zone | --accelerator | --version | --slices | --max-restarts | --create-flag | --connect-flag)
        (($# > 1)) || wrong "$1 needs a value"
        local variable=${1#--}
        case $1 in
          --create-flag) create_flags+=("$2") ;;
          --connect-flag) connect_flags+=("$2") ;;
          *) printf -v "${variable//-/_}" '%s' "$2" ;;
        esac
        shift 2
        ;;
      --spot | --reserved | --best-effort) tier+=("$1"); shift ;;
      --queued) queued=true; shift ;;
      --delete) delete=true; shift ;;
      --yes) yes=true; shift ;;
      --dry-run) dry_run=true; shift ;;
      --stop | --fetch | --down)
        [[ $mode == run ]] || wrong "--$mode and $1 are two things"
        mode=${1#--}
        shift
        ;;
      --help | -h) usage; exit 0 ;;
      --) shift; break ;;
      *) wrong "unknown argument $1" ;;
    esac
  done
  command=("$@")
}

check() {
  local variable needed=(name project zone)
  if [[ $mode == run ]]; then needed+=(accelerator); fi
  for variable in "${needed[@]}"; do
    [[ -n ${!variable} ]] || wrong "--$variable is missing"
  done
  [[ $max_restarts =~ ^[0-9]+$ ]] || wrong "--max-restarts is $max_restarts, not a number"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || wrong "--slices is $slices, not a number from 1"
  ((${#tier[@]} < 2)) || wrong "${tier[*]} exclude each other"
  [[ $mode != run ]] || ((${#command[@]})) || wrong "no command after --"
  $dry_run || type -P gcloud > /dev/null || wrong "there is no gcloud command here"
  type -P git > /dev/null || wrong "there is no git command here"
  if ((slices > 1)) || [[ ${tier[*]-} == --best-effort ]]; then queued=true; fi
  ask_queued=$queued
  # Of these types one host has up to 8 cores or chips. Others turn out when the machines are there.
  if [[ $mode == run ]] && { ((slices > 1)) || [[ $accelerator =~ ^(v[234]|v5p|v5litepod|v6e)-(9|[1-9][0-9]+)$ ]]; }; then
    check_workdir
  fi
  if [[ -z $version ]]; then
    case $accelerator in
      v5litepod-* | v5e-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      *) version=tpu-ubuntu2204-base ;;
    esac
  fi
}

# For several hosts: vlm train would refuse such a workdir, but only when all is made and installed.
check_workdir() {
  local directory
  directory=$(workdir "${command[@]}")
  case $directory in
    '' | /* | *://*) ;;
    *) wrong "--workdir $directory: every host would have its own; name a directory that all see, such as one in gs://" ;;
  esac
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || wrong "this is bash $BASH_VERSION; 4.4 or newer is needed"
again=("$0" "$@")
parse "$@"
cd "$(dirname "$0")"
# shellcheck source=tools/tpu_cloud.sh
source tools/tpu_cloud.sh
# shellcheck source=tools/tpu_run.sh
source tools/tpu_run.sh
check
here="zone $zone of project $project"
nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
fi
scratch=$(mktemp -d)
exec 3>&1 # commands of --dry-run, wherever they are called from

# What is left, and how to get at it: a TPU must never be forgotten because a script ended.
leave() {
  local code=$1 same=(--name "$name" --project "$project" --zone "$zone")
  trap - EXIT
  trap '' INT # a second Ctrl-C must not hide the text
  forget_jobs
  if ((slices > 1)); then same+=(--slices "$slices"); fi
  if $made && ! $dry_run && ((code == 129 || code == 130 || code == 143)); then
    say "stopped watching. Still there, and billed: $(what), in $here. A command that was started goes on there."
    say "watch it again: $(quote "${again[@]}")"
    say "end it, keep the TPU: $(quote "$0" --stop "${same[@]}")"
    say "delete the TPU: $(quote "$0" --down "${same[@]}")"
    trap - INT
    if ((code == 130)) && $delete && ! $yes && ask "Delete it now?"; then remove; fi
  elif $made && $delete; then
    remove || true
  elif $made && ! $dry_run; then
    say "still there, and billed: $(what), in $here; delete it with $(quote "$0" --down "${same[@]}")"
  fi
  rm -rf "$scratch"
  exit "$code"
}

run() {
  local attempt restarts=0 pause=60 code hosts=() workers coordinator
  commit=$(git rev-parse --verify --quiet HEAD) || wrong "there is no commit here that could be installed"
  find_kind
  if $delete; then
    say "at the end this deletes $(what), in $here, with all that is on its disks"
    if ! ask "Agreed?"; then wrong "nothing was made: --delete was not agreed to"; fi
  fi
  case $(workdir "${command[@]}") in
    '' | *://*) ;;
    /*) say "unless it is a mount, the workdir goes with the machine; several hosts must share it; gs:// does for both" ;;
    *) say "the workdir is on the disk of worker 0 and goes with that machine; one in gs:// outlives it" ;;
  esac
  if [[ -n $(git status --porcelain --untracked-files=no) ]]; then
    say "there are changes here that are not committed: they do not go along"
  fi
  while true; do
    code=75
    if ! ensure; then
      if ! $obtained; then code=1; break; fi
      say "asking again in $pause seconds, as often as it takes"
      sleep "$pause"
      ((pause = pause < 150 ? 2 * pause : 300))
      continue
    fi
    obtained=true pause=60 attempt=''
    # Nothing can be running on what was just made, so nobody is asked, and tries to reach it are counted.
    $fresh || find_attempt || continue
    find_hosts
    if [[ -z $attempt ]]; then
      if ((workers > 1)); then check_workdir; fi
      if install; then attempt=$(new_attempt); fi
    fi
    if [[ -n $attempt ]]; then
      fresh=false code=0
      follow_attempt "$attempt" || code=$?
    fi
    if ((code != 75)); then break; fi
    if $stopped; then
      say "ended by --stop: it is not started again"
      break
    fi
    ((++restarts <= max_restarts)) || { say "still not done after $max_restarts restarts"; break; }
    say "restart $restarts"
    sleep 10
  done
  if $made; then fetch "${command[@]}" || true; fi
  return "$code"
}

trap 'leave $?' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
case $mode in
  run) run ;;
  stop)
    say "ending the command on ${nodes[*]}: it may take minutes to save"
    each stop 600 || { say "could not reach every worker: $(last_line "$scratch"/stop.*)"; exit 1; }
    $dry_run || cat "$scratch"/stop.* | grep '^worker ' >&2 || true # where nothing was running
    ;;
  fetch) fetch "${command[@]}" ;;
  down) down ;;
esac
