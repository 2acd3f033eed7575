#!/bin/sh
# Takes the image's own logins away, once per instance, before the new ones are set.
# It never fails the boot, and touches no home that lies on another disk.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
state=/var/lib/cloud/instances/$INSTANCE_ID/sem
[ -n "$INSTANCE_ID" ] && mkdir -p "$state" || exit 0
for done in reimage_revoked config_users_groups config_set_passwords config_ssh; do
  [ -e "$state/$done" ] && exit 0
done
disk_of() {
  from=$(df -P "$1" 2>/dev/null | awk 'NR == 2 { print $1 }')
  name=$(readlink -f "$from" 2>/dev/null)
  name=${name##*/}
  while set -- /sys/class/block/"$name"/slaves/*; [ $# -eq 1 ] && [ -e "$1" ]; do
    name=${1##*/}
  done
  at=$(readlink -f "/sys/class/block/$name" 2>/dev/null)
  [ -e "$at/partition" ] && at=${at%/*}
  echo "${at:-$from}"
}
system=$(disk_of /)
{ echo /root; cut -d: -f6 /etc/passwd; } | sort -u | while read -r home; do
  for keys in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
    [ -e "$keys" ] || [ -L "$keys" ] || continue
    [ "$(disk_of "$home/.ssh")" = "$system" ] && rm -f "$keys"
  done
done
awk -F: '$1 ~ /^[A-Za-z_]/ && $2 !~ /^(x|[!*]+)$/ { print $1 }' /etc/shadow /etc/passwd | sort -u |
  while read -r user; do
    echo "$user:*" | chpasswd -e 2>/dev/null || usermod -p '*' "$user" 2>/dev/null || passwd -l "$user"
  done >/dev/null 2>&1
sync
: >"$state/reimage_revoked"
exit 0
