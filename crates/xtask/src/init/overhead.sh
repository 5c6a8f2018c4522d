#!/bin/sh
# overhead.sh NAME EXITS SECONDS COMMAND...: starts a virtual machine monitor and, at the first line of its guest's user
# space, prints one line:
#   overhead NAME pss_kib=N processes=N exits=N
# pss_kib is what all its processes hold outside guest memory, in proportion of sharing: outside memfds, and outside
# mappings of $GUEST_KIB. EXITS is the file that counts the exits of all virtual machines, or /dev/null.
name=$1 exits=$2 seconds=$3
shift 3
pipe=$(mktemp -u)
mkfifo "$pipe"
timeout -s KILL "$seconds" "$@" < /dev/null > "$pipe" 2>&1 &
limited=$!

# The processes below $1, and itself.
family() {
  echo "$1"
  for stat in /proc/[0-9]*/stat; do
    read -r pid _ _ parent _ < "$stat" 2>/dev/null || continue
    [ "$parent" != "$1" ] || family "$pid"
  done
}

# Whether the process is one of the monitor's, not of those that watch it.
is_monitor() {
  read -r comm < "/proc/$1/comm" 2>/dev/null || return 1
  case $comm in timeout | strace) return 1 ;; esac
}

report() {
  count=0
  read -r count < "$exits" || count=0
  total=0 processes=0
  for pid in $(family $limited); do
    is_monitor "$pid" || continue
    kib=$(awk -v guest="${GUEST_KIB:-0}" '/^[0-9a-f]+-[0-9a-f]+ /{outside = $6 !~ /^\/memfd:/}
      /^Size:/{if ($2 == guest) outside = 0} /^Pss:/{if (outside) sum += $2} END{print sum + 0}' "/proc/$pid/smaps")
    total=$((total + kib)) processes=$((processes + 1))
  done
  echo "overhead $name pss_kib=$total processes=$processes exits=$count"
}

found=
while read -r line; do
  case $line in *"guest: user space"*) found=yes; report; break ;; *) echo "$name: $line" ;; esac
done < "$pipe"
for pid in $(family $limited); do ! is_monitor "$pid" || kill -KILL "$pid" 2>/dev/null; done
wait $limited 2>/dev/null
rm -f "$pipe"
[ -n "$found" ] || { echo "overhead $name did not reach user space"; exit 1; }
