#!/bin/sh
# The first program of a machine that boots from its disk: finds the root, tells it its name and keys once, and goes there.
export PATH=/bin
busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

fail() {
  echo "umbra: $1" > /dev/console
  # Seen on the serial line before the machine ends.
  sleep 1
  poweroff -f
}

if [ -f /lib/modules/order ]; then
  for module in $(cat /lib/modules/order); do
    insmod /lib/modules/$module.ko 2> /dev/null
  done
else
  # The rest of this archive is somebody else's.
  modprobe -a virtio_pci virtio_blk virtio_net ext4 2> /dev/null
fi

root=/dev/vda
start=/sbin/init
for word in $(cat /proc/cmdline); do
  case $word in
    root=*) root=${word#root=} ;;
    init=*) start=${word#init=} ;;
  esac
done

# Disks come a moment after their driver.
tries=0
while :; do
  case $root in
    /dev/*) device=$root ;;
    *) device=$(findfs "$root" 2> /dev/null) ;;
  esac
  [ -z "$device" ] || [ ! -b "$device" ] || break
  tries=$((tries + 1))
  [ $tries -lt 100 ] || fail "there is no disk with the root file system $root"
  sleep 0.1
done
mount -t ext4 -o rw "$device" /sysroot || fail "the root file system $device cannot be mounted"

# Once for each machine, as cloud-init has it: what is changed in the guest later stays.
kept=/sysroot/var/lib/umbra/instance
if [ -f /umbra/instance ] && ! cmp -s /umbra/instance $kept; then
  mkdir -p /sysroot/var/lib/umbra
  if [ -f /umbra/hostname ]; then
    cat /umbra/hostname > /sysroot/etc/hostname
    read -r name < /umbra/hostname
    grep -q "[[:space:]]$name\$" /sysroot/etc/hosts 2> /dev/null || echo "127.0.1.1 $name" >> /sysroot/etc/hosts
  fi
  if [ -f /umbra/authorized_keys ]; then
    mkdir -p /sysroot/root/.ssh
    chmod 700 /sysroot/root/.ssh
    cat /umbra/authorized_keys >> /sysroot/root/.ssh/authorized_keys
    chmod 600 /sysroot/root/.ssh/authorized_keys
  fi
  # Without systemd nobody puts a login on the serial line by himself.
  if [ -f /sysroot/etc/inittab ] && ! grep -q '^ttyS0:' /sysroot/etc/inittab; then
    echo 'ttyS0::respawn:/bin/login -f root' >> /sysroot/etc/inittab
  fi
  cp /umbra/instance $kept
fi

# For systems that do not look there themselves.
[ ! -f /sysroot/etc/hostname ] || cat /sysroot/etc/hostname > /proc/sys/kernel/hostname
# By the agent the host runs commands. What this leaves in memory the system finds mounted, and its own root is the agent's.
if [ -f /umbra/agent ] && mount -t tmpfs -o mode=755,nosuid,nodev run /sysroot/run; then
  mkdir /sysroot/run/umbra
  cp /umbra/agent /sysroot/run/umbra/agent
  chroot /sysroot /run/umbra/agent < /dev/null > /dev/null 2>&1 &
fi
umount /sys /proc
exec switch_root /sysroot "$start"
