#!/bin/sh
# /init of the guest of `bench io`, with a raw disk, a qcow2 disk and a network card. io.tasks= names what it does, io.seconds= how long
# each, io.port= the host's port of iperf3. Every line of its own starts with "io: ".
#   io: idle                nothing happens for three seconds
#   io: figure NAME VALUE   IOPS of fio, megabits a second of iperf3
#   io: done
#   io: FAILED TEXT
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
read -r words < /proc/cmdline
for word in $words; do
  case $word in
    io.tasks=*) tasks=${word#*=} ;;
    io.seconds=*) seconds=${word#*=} ;;
    io.port=*) port=${word#*=} ;;
  esac
done

fail() { echo "io: FAILED $*"; dmesg | tail -n 10; poweroff -f; sleep 60; }

while read -r module; do insmod "/lib/modules/$module.ko" || fail "insmod $module"; done < /etc/modules

# What DHCP told, as busybox passes it.
cat > /tmp/dhcp << 'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
ip route add default via "$router" dev eth0
echo "$router" > /tmp/router
END
chmod +x /tmp/dhcp

idle() {
  echo "io: idle"
  sleep 3
}

# `random MODE FIELD DISK NAME`: FIELD is where fio's terse line has the IOPS.
random() {
  fio --name=row --filename="/dev/$3" --rw="$1" --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --time_based \
    --runtime="$seconds" --norandommap --output-format=terse --terse-version=3 > /tmp/out 2>&1 || fail "fio: $(tail -n 3 /tmp/out)"
  echo "io: figure $1-$4 $(grep '^3;' /tmp/out | cut -d';' -f"$2")"
}

disk() {
  random randread 8 vda raw
  random randread 8 vdb qcow2
  random randwrite 49 vda raw
  random randwrite 49 vdb qcow2
}

# `stream NAME OPTIONS...`: what the receiver counted.
stream() {
  name=$1
  shift
  iperf3 -4 -c "$router" -p "$port" -t "$seconds" -f m "$@" > /tmp/out 2>&1 || fail "iperf3: $(tail -n 3 /tmp/out)"
  echo "io: figure $name $(awk '/receiver/{for (i = 2; i <= NF; i++) if ($i ~ /bits/) print $(i - 1)}' /tmp/out)"
}

net() {
  ip link set lo up
  ip link set eth0 up
  udhcpc -q -n -f -i eth0 -s /tmp/dhcp > /tmp/out 2>&1 || fail "udhcpc: $(cat /tmp/out)"
  read -r router < /tmp/router
  stream to-host
  stream from-host -R
}

for task in $(echo "$tasks" | tr , ' '); do $task; done
echo "io: done"
poweroff -f
sleep 60
