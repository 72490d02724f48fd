#!/usr/bin/env bash
# `vlm` on a worker of the tests' cloud: does the next thing planned for this worker, or ends well.
plan=$FAKE_CLOUD/plans/$FAKE_NODE-$FAKE_WORKER
act=$(head -n 1 "$plan" 2> /dev/null)
[[ -f $plan ]] && sed -i 1d "$plan"
# A machine is taken away whatever it is told meanwhile.
[[ $act == preempted || $act == deaf ]] && trap '' TERM
# Before the test can know that it runs.
[[ $act == hang || $act == until-told ]] && trap 'echo "told to end"; exit 75' TERM
echo "$FAKE_NODE-$FAKE_WORKER ${act:-0} $*" >> "$FAKE_CLOUD/runs"
env | grep '^MEGASCALE' | sort | tr '\n' ' ' >> "$FAKE_CLOUD/environment-$FAKE_NODE-$FAKE_WORKER"
echo "step 1 on $FAKE_NODE-$FAKE_WORKER"
for workdir in runs/here "$FAKE_CLOUD/bucket/shared"; do
  mkdir -p "$workdir" && echo '{"loss": 1.0}' > "$workdir/metrics.jsonl"
done
case $act in
  preempted) python3 "$FAKE_CLOUD/fake_gcloud.py" preempt "$FAKE_NODE" ;;
  # What they leave behind when they end is for the worker script to clear away.
  hang) sleep 2000 & wait ;;
  until-told)
    until [[ -e $FAKE_CLOUD/end ]]; do sleep 1; done
    echo "the end"
    ;;
  deaf) sleep 2000 & wait ;;
  bereft) while ! grep -q ' preempted ' "$FAKE_CLOUD/runs"; do sleep 1; done; exit 1 ;;
  slow) for ((i = 2; i < 42; i++)); do echo "step $i"; sleep 1; done ;;
  *) echo "the end: ${act:-0}"; exit "${act:-0}" ;;
esac
