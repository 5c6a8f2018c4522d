#!/bin/busybox sh
# /init of the guest of `bench cpu`, and on the host the first program in its root. Runs the rows of rows.sh that are
# asked for by lines on standard input:
#   run NAME AMOUNT        begin and end are marked on standard output; between them nothing but the row's work is done
#   end                    powers the guest off, or ends
# Its lines:
#   cpu: ready uptime SECONDS
#   cpu: begin NAME uptime SECONDS
#   cpu: end NAME uptime SECONDS code N
#   cpu: result NAME SUM   sum of what the row wrote, which every side must agree on
#   cpu: says NAME TEXT    what a failed row wrote, and what it complained of
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/tmp LC_ALL=C
if [ "$1" != host ]; then
  mount -t proc proc /proc
  mount -t sysfs sys /sys
  mount -t devtmpfs dev /dev
  mkdir -p /dev/shm
  mount -t tmpfs shm /dev/shm
  mount -t tmpfs tmp /tmp
  exec < /dev/ttyS0 > /dev/ttyS0 2>&1
  # Lines come as they are written, and go as they are.
  stty -F /dev/ttyS0 -echo -onlcr
fi
cd /tmp || exit 1
. /bench/rows.sh

uptime() { read -r up _ < /proc/uptime; }

run() {
  rm -rf /tmp/row /tmp/out /tmp/err
  mkdir /tmp/row
  cd /tmp/row || return
  "prepare_$1" "$2" > /tmp/err 2>&1
  uptime
  echo "cpu: begin $1 uptime $up"
  "row_$1" "$2" > /tmp/out 2>> /tmp/err
  code=$?
  uptime
  echo "cpu: end $1 uptime $up code $code"
  [ $code = 0 ] || tail -n 5 /tmp/out /tmp/err | sed "s/^/cpu: says $1 /"
  sum=$(md5sum < /tmp/out)
  echo "cpu: result $1 ${sum%% *}"
  cd /tmp || return
}

uptime
echo "cpu: ready uptime $up"
while read -r word name amount; do
  case $word in
    run) run "$name" "$amount" ;;
    end) break ;;
  esac
done
[ "$1" = host ] || poweroff -f
