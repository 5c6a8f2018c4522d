# The rows of `bench cpu`: prepare_NAME AMOUNT makes ready, row_NAME AMOUNT does the work and writes what every side must
# write alike. AMOUNT is a count or a size, never a time. The working folder is empty and the row's own.

# `corpus KIB`: that much text, in the file `in`.
corpus() {
  left=$(($1 * 1024))
  : > in
  while [ $left -gt 0 ]; do
    head -c $left /bench/corpus >> in
    left=$((left - $(stat -c %s /bench/corpus)))
  done
}

# `stress STRESSOR OPS OPTIONS...`: one worker; writes whether it did what it was asked for.
stress() {
  stressor=$1 ops=$2
  shift 2
  stress-ng --no-rand-seed --timeout 0 "--$stressor" 1 "--$stressor-ops" "$ops" "$@" --metrics > log 2>&1 || { cat log; return 1; }
  if grep -q 'fail:' log; then cat log; return 1; fi
  echo "$stressor $ops done"
}

prepare_shell() { :; }
row_shell() {
  i=0 sum=0
  while [ $i -lt "$1" ]; do
    case $((i % 7)) in
      0) sum=$((sum * 31 + i)) ;;
      3) sum=$((sum ^ i)) ;;
    esac
    sum=$((sum & 16777215)) i=$((i + 1))
  done
  echo $sum
}

prepare_7zip() { corpus "$1"; touch -d @0 in; }
row_7zip() { 7zr a -y -bd -mmt=1 -mx=5 -mtm=off out.7z in > log && 7zr t -mmt=1 out.7z > log && cat out.7z; }

prepare_xz() { corpus "$1"; }
row_xz() { /usr/bin/xz -T1 -6 -c in > out.xz && /usr/bin/xz -T1 -dc out.xz | cmp - in && cat out.xz; }

prepare_zstd() { corpus "$1"; }
row_zstd() { zstd -q --single-thread -12 -c in > out.zst && zstd -q -dc out.zst | cmp - in && cat out.zst; }

prepare_perl() { :; }
row_perl() { perl /bench/text.pl "$1"; }

prepare_python() { :; }
row_python() { python3 -I -S /bench/text.py "$1"; }

prepare_gcc() { :; }
row_gcc() {
  i=0
  while [ $i -lt "$1" ]; do
    gcc-12 -O2 -c -o "work$i.o" /bench/work.c || return 1
    i=$((i + 1))
  done
  cat work*.o
}

prepare_sqlite() { sed "s/AMOUNT/$1/g" /bench/work.sql > work.sql; }
row_sqlite() { sqlite3 -batch :memory: < work.sql; }

prepare_matrix() { :; }
row_matrix() { stress matrix "$1" --matrix-size 128 --verify; }

prepare_sysbench() { :; }
row_sysbench() {
  sysbench cpu --cpu-max-prime=5000 --threads=1 --time=0 "--events=$1" run > log || return 1
  grep 'total number of events:' log
}

prepare_sha256() { :; }
row_sha256() { /bench/crypto sha256 "$1"; }

prepare_aesgcm() { :; }
row_aesgcm() { /bench/crypto aes-128-gcm "$1"; }

prepare_rsa() { :; }
row_rsa() { /bench/crypto rsa2048 "$1" /bench/rsa2048.pem; }

prepare_pynum() { :; }
row_pynum() { python3 -I -S /bench/number.py "$1"; }

prepare_perlnum() { :; }
row_perlnum() { perl /bench/number.pl "$1"; }

prepare_forkexec() { :; }
row_forkexec() {
  i=0
  while [ $i -lt "$1" ]; do
    /bin/busybox true || return 1
    i=$((i + 1))
  done
  echo $i
}

prepare_pipe() { :; }
row_pipe() { stress pipe "$1"; }

prepare_get() { :; }
row_get() { stress get "$1"; }

prepare_fault() { :; }
row_fault() { stress fault "$1"; }

prepare_switch() { :; }
row_switch() { stress switch "$1"; }

prepare_node() { :; }
row_node() { node /bench/work.js "$1"; }
