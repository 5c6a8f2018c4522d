#!/bin/busybox sh
# /init of the guests of `cargo xtask soak`. What it does is on the kernel command line:
#   umbra.task=NAME      the task, a function of tasks.sh
#   umbra.seconds=N      how long it shall take, if it is one that can choose
#   umbra.long           do all of it
# Its lines:
#   soak: begin NAME processors N
#   soak: says TEXT      what the task wrote
#   soak: kernel TEXT    what the kernel complained of
#   soak: end NAME code N
busybox=/bin/busybox
for folder in /proc /sys /dev /tmp /applets; do $busybox mkdir -p $folder; done
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
$busybox mkdir -p /dev/shm
$busybox mount -t tmpfs shm /dev/shm
$busybox mount -t tmpfs tmp /tmp
$busybox ln -s /proc/self/fd /dev/fd
$busybox --install -s /applets
exec < /dev/null > /dev/ttyS0 2>&1
export PATH=/usr/bin:/bin:/usr/sbin:/sbin:/applets HOME=/tmp LC_ALL=C
read -r words < /proc/cmdline
task=none seconds=10 long=
for word in $words; do
  case $word in
    umbra.task=*) task=${word#*=} ;;
    umbra.seconds=*) seconds=${word#*=} ;;
    umbra.long) long=yes ;;
  esac
done
cd /tmp || exit 1
. /soak/tasks.sh
echo "soak: begin $task processors $(nproc)"
"task_$task" > /tmp/said 2>&1
code=$?
tail -n 60 /tmp/said | sed 's/^/soak: says /'
# Levels up to warnings, and what tells of programs that crashed.
dmesg | grep -E 'BUG|WARNING:|Oops|Call Trace|segfault|general protection|trap |stall|soft lockup|blocked for more|Out of memory|Killed process' |
  head -n 20 | sed 's/^/soak: kernel /'
echo "soak: end $task code $code"
poweroff -f
