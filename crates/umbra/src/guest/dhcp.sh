#!/bin/sh
# What udhcpc learnt, in variables; see udhcpc's help in busybox.
ip addr flush dev $interface
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr add $ip/$mask dev $interface
[ -z "$router" ] || ip route add default via ${router%% *}
for server in $dns; do echo nameserver $server; done > /etc/resolv.conf
