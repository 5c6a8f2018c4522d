#!/bin/sh
# /init of the guest that proves disks. What it does is on the kernel command line:
#   umbra.task=fill    makes a file system on /dev/vda, fills it, and reads it back after it was unmounted
#   umbra.task=log     makes a file system on /dev/vda and logs what it has made durable, until it is ended from outside
#   umbra.task=check   says what such a log holds
#   umbra.end=reboot   what follows the task; else it switches the power off
#   umbra.task=stay    the same, five lines a second
# Every line of its own starts with "guest: ".
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mkdir -p /mnt
read -r words < /proc/cmdline
for word in $words; do
  case $word in
    umbra.task=*) task=${word#*=} ;;
    umbra.kib=*) kib=${word#*=} ;;
    umbra.end=reboot) end=reboot ;;
  esac
done

fail() { echo "guest: FAILED: $*"; dmesg | tail -n 15; poweroff -f; sleep 60; }

while read -r module; do insmod "/lib/modules/$module.ko" || fail "insmod $module"; done < /etc/modules
i=0
while [ ! -b /dev/vda ]; do
  i=$((i + 1))
  [ $i -lt 100 ] || fail "no /dev/vda"
  sleep 0.1
done

facts() {
  queue=/sys/block/vda/queue
  echo "guest: disk sectors=$(cat /sys/block/vda/size) serial=$(cat /sys/block/vda/serial) ro=$(cat /sys/block/vda/ro)" \
    "cache=$(cat $queue/write_cache | tr ' ' -) discard=$(cat $queue/discard_max_bytes) physical=$(cat $queue/physical_block_size)" \
    "queues=$(ls /sys/block/vda/mq | wc -l) interrupts=$(grep -c virtio /proc/interrupts)"
}

make() { mkfs.ext4 -q -F /dev/vda > /tmp/mkfs 2>&1 || fail "mkfs: $(cat /tmp/mkfs)"; }

fill() {
  facts
  make
  mount -t ext4 -o discard /dev/vda /mnt || fail mount
  head -c $((${kib:-4096} * 1024)) /dev/urandom > /mnt/one
  for name in two three four; do cp /mnt/one /mnt/$name; done
  rm /mnt/three
  sum=$(md5sum < /mnt/one)
  sync
  umount /mnt || fail umount
  mount -t ext4 /dev/vda /mnt || fail "the second mount"
  for name in one two four; do [ "$(md5sum < /mnt/$name)" = "$sum" ] || fail "/mnt/$name is another"; done
  echo "guest: sum ${sum%% *}"
  umount /mnt || fail "the second umount"
}

# A line is told only when fsync(2) has ended.
log() {
  i=0
  while :; do
    i=$((i + 1))
    echo "line $i" | dd of=/mnt/log oflag=append conv=notrunc,fsync 2> /tmp/dd || fail "dd: $(cat /tmp/dd)"
    echo "guest: durable $i"
    "$@"
  done
}

case $task in
  fill) fill ;;
  log)
    make
    mount -t ext4 /dev/vda /mnt || fail mount
    log
    ;;
  stay)
    make
    mount -t ext4 /dev/vda /mnt || fail mount
    log sleep 0.2
    ;;
  check)
    mount -t ext4 /dev/vda /mnt || fail mount
    n=0
    while read -r word number; do
      n=$((n + 1))
      [ "$word $number" = "line $n" ] || fail "line $n is \"$word $number\""
    done < /mnt/log
    echo "guest: log has $n"
    umount /mnt
    ;;
  *) fail "unknown task $task" ;;
esac
[ "$end" != reboot ] || reboot -f
poweroff -f
sleep 60
