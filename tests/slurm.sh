#!/usr/bin/env bash
# A Slurm cluster of two nodes with one core each, all on this machine and on loopback alone, with a munge of its own.
#     tests/slurm.sh up DIR PORT PORT PORT    starts it; then SLURM_CONF=DIR/slurm.conf
#     tests/slurm.sh node DIR NAME            starts the daemon of the node n1 or n2 (again)
#     tests/slurm.sh down DIR                 ends it
# Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. A node is lost after 6 s here, and an
# array has at most 4 elements.
set -euo pipefail
dir=$(realpath -m "$2")
export SLURM_CONF=$dir/slurm.conf

end() {
    local file pid
    for file in "$dir"/run/*.pid; do
        pid=$(cat "$file" 2>/dev/null) && kill -KILL "$pid" 2>/dev/null || true
    done
}

case $1 in
up)
    mkdir -p "$dir"/{state,n1,n2,log,run,tmp-n1,tmp-n2}
    chmod 755 "$dir" "$dir/run"
    host=$(hostname -s)
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$3
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/%n.pid
SlurmdSpoolDir=$dir/%n
StateSaveLocation=$dir/state
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MaxArraySize=4
TmpFS=$dir/tmp-%n
KillWait=5
MinJobAge=3600
ReturnToService=2
SlurmdTimeout=6
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$4 CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$5 CPUs=1 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    munged --force --key-file="$dir/munge.key" --socket="$dir/run/munge.socket" --pid-file="$dir/run/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed"
    slurmctld
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 120); do
        [ "$(sinfo -h -o %T 2>/dev/null | sort -u)" = idle ] && exit
        sleep 0.25
    done
    sinfo >&2
    end
    exit 1
    ;;
node) slurmd -N "$3" ;;
down) end ;;
esac
