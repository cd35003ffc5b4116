#!/usr/bin/env bash
# A real Slurm on this machine, for tests and for trying out batch scripts: munge, one controller, several nodes.
#
#   tools/slurm_local.sh start FOLDER [NODES]   make FOLDER, start everything in it (2 nodes of 4 slots), wait until it is up
#   tools/slurm_local.sh status FOLDER          the nodes and jobs; exit code 1 when it is not running
#   tools/slurm_local.sh stop FOLDER            cancel all jobs, end everything that start began
#
# Then: export SLURM_CONF=FOLDER/slurm.conf, and sbatch, srun, squeue and scontrol talk to it.
# Needs Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Nothing outside FOLDER is written and nothing of
# the system's own Slurm or munge is touched; it runs as whoever calls it, root or not. Of another user's jobs it runs none.
# The nodes are slurmd processes with names and ports of their own (slurmd -N); each has 4 slots whatever the machine has,
# so that jobs over two nodes run on two cores. Of its two partitions, batch and urgent, jobs of the second preempt those of
# the first: they are told (SIGTERM), have a minute, and are requeued. FOLDER/plugstack.conf takes SPANK plugins: add a line before a job starts.
set -euo pipefail

SLOTS=4

fail() {
  echo "slurm_local: $1" >&2
  exit "${2:-2}"
}

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit 2
}

require_commands() {
  local name
  for name in munged slurmctld slurmd sbatch srun scontrol; do
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$name" >/dev/null ||
      fail "$name is not installed; on Debian: apt-get install slurm-wlm munge"
  done
}

# The first of a row of ports that nobody listens on; below the kernel's range for outgoing connections.
free_ports() {
  local count=$1 base try port
  for try in $(seq 50); do
    base=$((20000 + (RANDOM % 1000) * 10))
    for port in $(seq "$base" $((base + count - 1))); do
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
    done
    echo "$base"
    return
  done
  fail "no free ports" 1
}

write_config() {
  local folder=$1 nodes=$2 host user base memory_mib number
  host=$(hostname -s)
  user=$(id -un)
  base=$(free_ports $((nodes + 1)))
  memory_mib=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  : >"$folder/plugstack.conf"
  : >"$folder/cgroup.conf"
  {
    cat <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it starts again.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
PlugStackConfig=$folder/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_min_interval=100000,kill_invalid_depend
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=20
KillWait=10
# Finished jobs stay visible to scontrol for an hour, as there is no accounting.
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    for number in $(seq "$nodes"); do
      echo "NodeName=n$number NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + number)) CPUs=$SLOTS RealMemory=$memory_mib State=UNKNOWN"
    done
  } >"$folder/slurm.conf"
}

start_munge() {
  local folder=$1 seconds
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  # --force: the folder may lie below one that others can write to, such as /tmp.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2>"$folder/munged.err" ||
    fail "munged does not start: $(tail -n 1 "$folder/munged.err")" 1
  for seconds in $(seq 50); do
    [ -S "$folder/munge.socket" ] && return
    sleep 0.1
  done
  fail "munged does not come up; see $folder/munged.log" 1
}

start() {
  local folder=$1 nodes=${2:-2} number tries
  [[ "$nodes" =~ ^[1-9]$ ]] || fail "NODES is '$nodes'; accepted: 1 to 9"
  [ ! -e "$folder/slurm.conf" ] || fail "$folder holds a Slurm already; stop it first, or take another folder"
  folder=$(realpath -m "$folder")
  # A Unix socket's path ends at 107 characters, and Slurm's files take no spaces or commas.
  [[ "$folder" =~ ^[A-Za-z0-9_./+-]{1,80}$ ]] ||
    fail "$folder: accepted: a path of up to 80 letters, digits and _ . / + - (sockets lie in it)"
  require_commands
  mkdir -p "$folder/state"
  folder=$(realpath "$folder")
  write_config "$folder" "$nodes"
  trap 'stop "$folder"' ERR EXIT
  start_munge "$folder"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld -i
  for number in $(seq "$nodes"); do
    mkdir -p "$folder/spool-n$number"
    slurmd -N "n$number"
  done
  for tries in $(seq 300); do
    if [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = "$nodes" ]; then
      trap - ERR EXIT
      echo "export SLURM_CONF=$folder/slurm.conf"
      return
    fi
    sleep 0.1
  done
  fail "the nodes do not come up; see the logs in $folder" 1
}

# The process of a pid file, if it is still one of this folder's.
process_of() {
  local file=$1 pid
  [ -f "$file" ] || return 1
  pid=$(cat "$file")
  [[ "$pid" =~ ^[0-9]+$ ]] && kill -0 "$pid" 2>/dev/null || return 1
  case "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)" in
    *munged* | *slurmctld* | *slurmd*) echo "$pid" ;;
    *) return 1 ;;
  esac
}

end_process() {
  local pid tries
  pid=$(process_of "$1") || return 0
  kill "$pid" 2>/dev/null || return 0
  for tries in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

stop() {
  local folder=$1 file tries
  trap - ERR EXIT
  [ -d "$folder" ] || fail "$folder: no such folder"
  folder=$(cd "$folder" && pwd)
  [ -f "$folder/slurm.conf" ] || fail "$folder holds no Slurm of this script"
  export SLURM_CONF="$folder/slurm.conf"
  if process_of "$folder/slurmctld.pid" >/dev/null; then
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for tries in $(seq 100); do # jobs end before their nodes do, else their processes stay
      [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
      [ "$tries" != 30 ] || timeout 10 scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null || true
      sleep 0.2
    done
  fi
  for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do end_process "$file"; done
  rm -f "$folder/slurm.conf" "$folder/munge.key"
}

status() {
  local folder=$1
  [ -f "$folder/slurm.conf" ] || fail "$folder holds no running Slurm" 1
  export SLURM_CONF
  SLURM_CONF="$(cd "$folder" && pwd)/slurm.conf"
  process_of "$folder/slurmctld.pid" >/dev/null || fail "the controller of $folder is not running" 1
  sinfo -N -o '%N %T %c slots'
  squeue -o '%i %T %j %N %r'
}

[ $# -ge 2 ] || usage
PATH="$PATH:/usr/sbin:/usr/local/sbin"
case "$1" in
  start | stop | status) "$@" ;;
  *) usage ;;
esac
