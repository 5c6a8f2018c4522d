# Runs the agent on the host, in the root $0 of the guest of `bench cpu`, inside a mount and process namespace of its own: what
# it mounts goes with it.
set -e
mount --make-rprivate /
cd "$0"
mount -t proc proc proc
mount -t sysfs sys sys 2> /dev/null || :
mount -t tmpfs dev dev
for name in null zero full random urandom; do
  : > dev/$name
  mount --bind /dev/$name dev/$name
done
ln -s /proc/self/fd dev/fd
mkdir dev/shm
mount -t tmpfs shm dev/shm
mount -t tmpfs tmp tmp
exec chroot . /bin/busybox sh /bench/agent.sh host
