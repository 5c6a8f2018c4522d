#!/bin/sh
# /init of the test guest. What it does is on the kernel command line:
#   umbra.task=shell|boot|count|clock|idle   (boot does nothing further)
#   umbra.ticks=N    how many lines `count` and `clock` print
#   umbra.kib=N      how much memory `count` copies and checks at each tick
#   umbra.modules    load every module of the image first
#   umbra.end=poweroff|reboot|crash|halt     what follows the task
# Every line of its own starts with "guest: ".
echo "guest: user space"
export PATH=/bin HOME=/
mount -t proc proc /proc
read -r words < /proc/cmdline
task=boot ticks=20 kib=1024 end=poweroff
for word in $words; do
  case $word in
    umbra.task=*) task=${word#*=} ;;
    umbra.ticks=*) ticks=${word#*=} ;;
    umbra.kib=*) kib=${word#*=} ;;
    umbra.end=*) end=${word#*=} ;;
    umbra.modules) modules=yes ;;
  esac
done

uptime() { read -r up _ < /proc/uptime; }

facts() {
  mount -t sysfs sys /sys
  mount -t devtmpfs dev /dev 2>/dev/null
  mount -t tmpfs tmp /tmp
  [ -z "$modules" ] || while read -r module; do insmod "/lib/modules/$module.ko"; done < /etc/modules
  while read -r key value _; do
    case $key in MemTotal:) memory=$value ;; esac
  done < /proc/meminfo
  read -r clock < /sys/devices/system/clocksource/clocksource0/current_clocksource
  hypervisor=$(dmesg | sed -n 's/.*Hypervisor detected: //p')
  uptime
  echo "guest: kernel=$(uname -r) cpus=$(nproc) memory_kib=$memory clock=$clock hypervisor=$hypervisor uptime=$up"
}

count() {
  head -c $((kib * 1024)) /dev/urandom > /tmp/base
  sum=$(md5sum < /tmp/base)
  i=0
  while [ $i -lt "$ticks" ]; do
    i=$((i + 1))
    cp /tmp/base /tmp/copy$((i % 4))
    if [ "$(md5sum < /tmp/copy$((i % 4)))" = "$sum" ]; then result=ok; else result=CORRUPT; fi
    uptime
    echo "guest: tick $i memory $result uptime $up"
    sleep 0.5
  done
}

clock() {
  i=0
  while [ $i -lt "$ticks" ]; do
    i=$((i + 1))
    uptime
    echo "guest: clock $i uptime $up date $(date +%s)"
    sleep 1
  done
}

case $task in
  boot) ;;
  count) facts; count ;;
  clock) facts; clock ;;
  idle) facts; while :; do sleep 1000; done ;;
  shell) facts; busybox --install -s /bin; setsid cttyhack sh ;;
  *) echo "guest: unknown task $task" ;;
esac
uptime
echo "guest: $end at uptime $up"
case $end in
  reboot) reboot -f ;;
  crash) echo c > /proc/sysrq-trigger ;;
  halt) halt -f ;;
  *) poweroff -f ;;
esac
sleep 60
