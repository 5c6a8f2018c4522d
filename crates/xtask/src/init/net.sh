#!/bin/sh
# /init of the guest that proves networks. umbra.port= is a web server of the host's that has the file /file, umbra.sum= its MD5 sum;
# umbra.task=client fetches it, and sends one back to the server's port + 1; umbra.task=server is one, on port 80, until somebody
# fetches /end. Every line of its own starts with "guest: ".
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
read -r words < /proc/cmdline
for word in $words; do
  case $word in
    umbra.task=*) task=${word#*=} ;;
    umbra.port=*) port=${word#*=} ;;
    umbra.sum=*) sum=${word#*=} ;;
  esac
done

fail() { echo "guest: FAILED: $*"; dmesg | tail -n 15; poweroff -f; sleep 60; }

while read -r module; do insmod "/lib/modules/$module.ko" || fail "insmod $module"; done < /etc/modules
i=0
while [ ! -e /sys/class/net/eth0 ]; do
  i=$((i + 1))
  [ $i -lt 100 ] || fail "no eth0"
  sleep 0.1
done

# What DHCP told, as busybox passes it.
cat > /tmp/dhcp << 'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
[ -z "$router" ] || ip route add default via "$router"
echo "nameserver $dns" > /etc/resolv.conf
echo "guest: net ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu mac=$(cat /sys/class/net/eth0/address)"
END
chmod +x /tmp/dhcp
mkdir -p /etc
ip link set lo up
ip link set eth0 up
udhcpc -q -n -f -i eth0 -s /tmp/dhcp > /tmp/udhcpc 2>&1 || fail "udhcpc: $(cat /tmp/udhcpc)"
grep 'guest: ' /tmp/udhcpc
i=0
while ! ip -6 addr show dev eth0 scope site | grep -q fec0; do
  i=$((i + 1))
  [ $i -lt 100 ] || fail "no address of IPv6"
  sleep 0.1
done
echo "guest: ipv6 $(ip -6 route | grep -c '^default via fe80::2')"

client() {
  ping -c 2 -W 5 10.0.2.2 > /tmp/ping || fail "ping: $(cat /tmp/ping)"
  ping -6 -c 1 -W 5 fec0::2 > /tmp/ping || fail "ping6: $(cat /tmp/ping)"
  wget -q -O /tmp/file "http://10.0.2.2:$port/file" || fail wget
  [ "$(md5sum < /tmp/file)" = "$sum  -" ] || fail "the file is another"
  begun=$(cut -d' ' -f1 /proc/uptime)
  wget -q -O /dev/null "http://10.0.2.2:$port/large" || fail "the large file"
  ended=$(cut -d' ' -f1 /proc/uptime)
  echo "guest: received in $begun $ended"
  begun=$(cut -d' ' -f1 /proc/uptime)
  head -c 268435456 /dev/zero | nc 10.0.2.2 $((port + 1)) > /dev/null || fail nc
  ended=$(cut -d' ' -f1 /proc/uptime)
  echo "guest: sent in $begun $ended"
  nc -w 2 10.0.2.2 1 < /dev/null && fail "somebody listens on port 1"
  echo "guest: client done"
}

server() {
  mkdir -p /tmp/www
  head -c 4194304 /dev/urandom > /tmp/www/file
  echo "guest: serves $(md5sum < /tmp/www/file)"
  httpd -p 80 -h /tmp/www || fail httpd
  echo "guest: ready"
  while :; do sleep 1; done
}

$task
poweroff -f
sleep 60
