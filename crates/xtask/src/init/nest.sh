#!/bin/sh
# /init of the nested host: a Linux with working KVM. Runs /run.sh, hands the folder /out to the machine outside as a
# tar archive on the NVMe disk, says how the script ended, and powers off. On the kernel command line:
#   nest.options=kvm_amd:npt=0,other:option=1   options of modules
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /out
mount -t devpts devpts /dev/pts
for folder in /dev/shm /tmp /run; do mount -t tmpfs tmpfs $folder; done
export XDG_RUNTIME_DIR=/run
read -r words < /proc/cmdline
for word in $words; do
  case $word in nest.options=*) options=$(echo "${word#*=}" | tr , ' ') ;; esac
done
while read -r module; do
  given=
  for option in $options; do
    [ "${option%%:*}" = "$module" ] && given="$given ${option#*:}"
  done
  insmod "/lib/modules/$module.ko" $given || echo "nest: module $module is not loaded"
done < /etc/modules
ip link set lo up
read -r up _ < /proc/uptime
echo "nest: user space at $up"
cd /
sh /run.sh < /dev/null
code=$?
tries=0
until [ -b /dev/nvme0n1 ] || [ $tries = 50 ]; do tries=$((tries + 1)); sleep 0.1; done
tar -C /out -cf /dev/nvme0n1 . || echo "nest: /out was not handed over"
sync
echo "nest: script ended with $code"
poweroff -f
sleep 60
