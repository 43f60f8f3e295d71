#!/usr/bin/env bash
# Makes a machine of the Vagrantfile what its name says: provision.sh NAME CLIENT NODE1 NODE2.  May run again.
set -euo pipefail

name=$1 node1=$3 node2=$4
export DEBIAN_FRONTEND=noninteractive

# The apps of node N are 10.N.0.0/24, behind it.
case $name in
    client)
        apt-get update -qq
        apt-get install -qq -y --no-install-recommends curl >/dev/null
        ip route replace 10.1.0.0/24 via "$node1"
        ip route replace 10.2.0.0/24 via "$node2"
        exit ;;
    node1) number=1 address=$node1 ;;
    node2) number=2 address=$node2 ;;
    *) printf 'provision.sh: no such machine: %s\n' "$name" >&2; exit 2 ;;
esac

cd /opt/fsm-fastpath
scripts/setup
scripts/build
install -m 755 target/release/fsm-fastpath /usr/local/sbin/

# --- Routing, and one app in a namespace ---

sysctl -qw net.ipv4.ip_forward=1
ip route replace "10.$((3 - number)).0.0/24" via "$([ "$number" = 1 ] && echo "$node2" || echo "$node1")"
if ! ip netns list | grep -qw app; then
    ip netns add app
    ip link add veth-app type veth peer name eth0 netns app
    ip addr add "10.$number.0.1/24" dev veth-app
    ip link set veth-app up
    ip -n app addr add "10.$number.0.2/24" dev eth0
    ip -n app link set lo up
    ip -n app link set eth0 up
    ip -n app route add default via "10.$number.0.1"
fi

# --- The gateway: takes what is steered, and connects to where it was going ---

cat >/etc/haproxy/fsm-gateway.cfg <<EOF
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend inbound
  bind $address:15003
  tcp-request content reject if { dst $address }
  default_backend original
frontend outbound
  bind $address:15001
  tcp-request content reject if { dst $address }
  default_backend original
backend original
  server original 0.0.0.0
EOF

unit() { # NAME COMMAND...
    systemctl stop "$1" 2>/dev/null || true
    systemd-run --quiet --collect --unit="$1" "${@:2}"
}
unit app nsenter --net=/run/netns/app nginx -g 'daemon off;'
unit gateway haproxy -db -f /etc/haproxy/fsm-gateway.cfg

# --- fsm-fastpath ---

uplink=$(ip -o addr show to "$address" | awk '{ print $2; exit }')
install -d /etc/fsm-fastpath
cat >/etc/fsm-fastpath/node.toml <<EOF
[node]
name = "$name"

[[interface]]
name = "$uplink"
role = "uplink"

[[interface]]
name = "veth-*"
role = "endpoint"

[gateway]
inbound  = ["$address:15003"]
outbound = ["$address:15001"]
exclude_inbound_ports = [22]
original_dst = "$(findmnt -rnt cgroup2 -o TARGET | head -n 1)"
EOF
fsm-fastpath check
install -m 644 configs/fsm-fastpath.service /etc/systemd/system/
systemctl daemon-reload
systemctl enable --quiet fsm-fastpath
systemctl restart fsm-fastpath
fsm-fastpath status
