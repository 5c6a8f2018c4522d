#!/bin/sh
# The default guest's first program. Whatever the shell can do itself it does: each further process takes time.
export PATH=/bin HOME=/root TERM=linux PS1='\w \$ '
# The shell finds its own commands through /proc.
busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo umbra > /proc/sys/kernel/hostname

load() { [ ! -f /lib/modules/$1.ko ] || insmod /lib/modules/$1.ko; }

# From here on a panic is told to the machine.
load pvpanic
load pvpanic-mmio

# Drivers of virtio devices, where there are any (1af4 is their vendor).
# Nobody waits for the one of sockets.
for device in /sys/bus/pci/devices/*; do
  read -r vendor < $device/vendor
  read -r kind < $device/device
  case $vendor:$kind in
    0x1af4:0x1053) sockets=yes ;;
    0x1af4:*) virtio=yes ;;
  esac
done
load_all() { for module; do load $module; done; }
load_virtio() { load_all virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci; }
[ -z "$virtio" ] || { load_virtio; load_all virtio_blk rng-core virtio-rng failover net_failover virtio_net; }

read -r release < /proc/sys/kernel/osrelease
read -r online < /sys/devices/system/cpu/online
read -r _ memory _ < /proc/meminfo
read -r consoles < /sys/class/tty/console/active
hypervisor=$(dmesg | grep -m 1 'Hypervisor detected: ')
hypervisor=${hypervisor##*: }
cpus=$((${online##*-} + 1))
[ $cpus = 1 ] && s= || s=s
echo "Linux $release under ${hypervisor:-an unknown hypervisor}, $cpus processor$s, $((memory / 1024)) MiB of memory; \`poweroff\` ends it."

# What nobody waits for: commands by path, the agent by which the host runs commands, and the power button.
{
  busybox --install -s /bin
  if [ "$sockets" ]; then
    [ "$virtio" ] || load_virtio
    load_all vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport
    mkdir /dev/pts
    mount -t devpts pts /dev/pts
    /lib/umbra/agent &
  fi
  ip link set lo up
  [ ! -e /sys/class/net/eth0 ] || { ip link set eth0 up; udhcpc -b -i eth0 -s /etc/dhcp; } &
  load button
  load evdev
  acpid -d
} > /dev/null 2>&1 &

# How busybox' commands of these names tell the first program.
trap 'poweroff -f' USR2
trap 'reboot -f' TERM
trap 'halt -f' USR1

# A job in the background would be deaf to Ctrl-C, and one in the foreground would make this shell deaf to the signals
# above. A daemon is neither. It tells when the user's shell has ended.
cd /root
mkfifo /run/ended
terminal=/dev/${consoles##* }
start-stop-daemon -S -b -p /run/shell.pid -x /bin/sh -- \
  -c "setsid -c sh < $terminal > $terminal 2>&1; echo > /run/ended"
# Opened for both, which does not wait for the other side.
read -r _ <> /run/ended
poweroff -f
