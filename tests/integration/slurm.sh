#!/usr/bin/env bash
# Sweeps on a real Slurm of one node, also with two processes per run. Installs slurm-wlm and munge, so run it as root on a
# Debian machine that may be changed, after `make setup`:
#
#   bash tests/integration/slurm.sh
#
# PYTHON is another interpreter than that of .venv. All daemons end with the script.
# SLOWER=5 waits five times as long, on a busy machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$PWD/.venv/bin/python}
# In a place that a job sees as well.
scratch=$(mktemp -d)
export SLURM_CONF=$scratch/slurm.conf
export TFDS_DATA_DIR=$scratch/datasets
export JAX_PLATFORMS=cpu
daemons=()
sweeping=

end() {
  local code=$?
  if [ "$code" != 0 ]; then tail -n 30 "$scratch"/*.log || true; fi
  # The sweep first, which cannot end its job without Slurm.
  for pid in $sweeping "${daemons[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" || true
  done
  rm -rf "$scratch"
  if [ "$code" = 0 ]; then echo "== passed"; else echo "== FAILED"; fi
}
trap end EXIT
trap 'exit 143' INT TERM

within() {  # SECONDS COMMAND...: until the command succeeds
  local seconds=$(($1 * ${SLOWER:-1}))
  shift
  for _ in $(seq "$((seconds * 2))"); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  echo "not within $seconds seconds: $*"
  return 1
}

echo "== Slurm of one node"
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge
fi
if ! munge -n >/dev/null 2>&1; then
  install -d -o munge -g munge /run/munge /var/log/munge /var/lib/munge
  runuser -u munge -- munged --foreground >"$scratch/munged.log" 2>&1 &
  daemons+=($!)
  within 10 munge -n
fi
host=$(hostname -s)
cat >"$SLURM_CONF" <<EOF
ClusterName=segloss
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
$(slurmd -C | sed -n 's/ UpTime.*//; /^NodeName/p') NodeAddr=127.0.0.1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
mkdir "$scratch/state" "$scratch/spool"
slurmctld -D -f "$SLURM_CONF" >"$scratch/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -f "$SLURM_CONF" >"$scratch/slurmd.log" 2>&1 &
daemons+=($!)
within 30 srun --time=1 true
sinfo

# No function: of one in the background, a signal would not reach what it runs.
sweep=("$python" -m experiments.run --launcher=slurm --slurm_partition=main --slurm_time=30)

echo "== two runs"
"${sweep[@]}" --workdir="$scratch/smoke" --config=configs/sweeps/demo_samplers.py --smoke
for arm in random balance_batch; do
  test -s "$scratch/smoke/$arm/seed=0/results.json"
  grep -q "SLURM\|JobEnvironment(job_id=" "$scratch"/smoke/.jobs/$arm/seed=0/1/*_log.out
done

# Long enough to be stopped on the way.
long=("${sweep[@]}" --workdir="$scratch/long" --jobs=1
  --config=configs/sweeps/demo_samplers.py:smoke
  --config.total_steps=400 --config.checkpoint_every_steps=20
  --config.evaluate_every_steps=400)
run=$scratch/long/random/seed=0
newest() { find "$run/checkpoints" -mindepth 1 -maxdepth 1 -name "$1*"; }
has_checkpoint() { test -n "$(newest '[1-9]')"; }
has_job() { test -n "$(job)"; }
job() { squeue --noheader --states=RUNNING --format=%i | head -n 1; }

echo "== what Slurm sends before the time limit: the run goes on in another job"
"${long[@]}" >"$scratch/first.log" 2>&1 &
sweeping=$!
within 180 has_checkpoint
scancel --signal=USR2 "$(job)"
within 60 grep "random/seed=0: waiting, its job was stopped at step" "$scratch/first.log"
within 60 has_job

echo "== the sweep is stopped: its job saves and ends"
within 180 grep -r "resumes from step" "$scratch/long/.jobs/random/seed=0"
kill -TERM "$sweeping"
code=0
wait "$sweeping" || code=$?
cat "$scratch/first.log"
sweeping=
test "$code" = 143
test -z "$(squeue --noheader)"
grep -q "random/seed=0: stopped at step" "$scratch/first.log"

echo "== and goes on"
"${long[@]}" | tee "$scratch/second.log"
grep -q "random/seed=0: done" "$scratch/second.log"
test -s "$scratch/long/balance_batch/seed=0/results.json"

echo "== a run of two processes is stopped, resumes and finishes"
two=("${sweep[@]}" --workdir="$scratch/two" --jobs=1 --slurm_tasks_per_node=2
  --config=configs/sweeps/demo_samplers.py --smoke
  --config.total_steps=100 --config.checkpoint_every_steps=10
  --config.evaluate_every_steps=100)
run=$scratch/two/random/seed=0
logs=$scratch/two/.jobs/random/seed=0
"${two[@]}" >"$scratch/two.log" 2>&1 &
sweeping=$!
within 180 has_checkpoint
first=$(job)
scancel --signal=TERM "$first"
within 120 grep "random/seed=0: waiting, its job was stopped at step" "$scratch/two.log"
within 180 grep -r "resumes from step" "$logs/2"
wait "$sweeping"
sweeping=
cat "$scratch/two.log" "$logs"/*/*_0_log.out
grep -q "random/seed=0: done" "$scratch/two.log"
# Each attempt had a log per process, and the first process alone wrote results.
test "$(find "$logs/1" -name '*_log.out' | wc -l)" = 2
grep -q "on 2 cpu device(s)" "$logs"/1/*_0_log.out
grep -q '"devices": "2 x cpu"' "$run/run.json"
test "$(wc -l <"$run/metrics.jsonl")" -ge 100
