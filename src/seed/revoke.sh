#!/bin/sh
# Takes the image's own logins away, once per instance, before the new ones are set.
# It never fails the boot, and touches no home that may lie on another disk.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
state=/var/lib/cloud/instances/$INSTANCE_ID/sem
[ -n "$INSTANCE_ID" ] && mkdir -p "$state" || exit 0
for done in reimage_revoked config_users_groups config_set_passwords config_ssh; do
  [ -e "$state/$done" ] && exit 0
done
# The disk below a folder, through partitions and volumes of one disk; nothing if that is unsure.
disk_of() {
  name=$(readlink -f "$(df -P "$1" 2>/dev/null | awk 'NR == 2 { print $1 }')" 2>/dev/null)
  name=${name##*/}
  [ -n "$name" ] && [ -e "/sys/class/block/$name" ] || return 0
  while set -- /sys/class/block/"$name"/slaves/*; [ $# -eq 1 ] && [ -e "$1" ]; do
    name=${1##*/}
  done
  at=$(readlink -f "/sys/class/block/$name")
  [ -e "$at/partition" ] && at=${at%/*}
  echo "$at"
}
on_system_disk() {
  device=$(stat -c %d "$1" 2>/dev/null)
  [ -n "$device" ] && [ "$device" = "$root" ] && return 0
  disk=$(disk_of "$1")
  [ -n "$disk" ] && [ "$disk" = "$system" ]
}
root=$(stat -c %d / 2>/dev/null)
system=$(disk_of /)
{ echo /root; cut -d: -f6 /etc/passwd; } | sort -u | while read -r home; do
  for keys in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
    [ -e "$keys" ] || [ -L "$keys" ] || continue
    on_system_disk "$home/.ssh/." && rm -f "$keys"
  done
done
awk -F: '$1 ~ /^[A-Za-z_]/ && $2 !~ /^(x|[!*]+)$/ { print $1 }' /etc/shadow /etc/passwd | sort -u |
  while read -r user; do
    echo "$user:*" | chpasswd -e || usermod -p '*' "$user" || passwd -l "$user"
  done >/dev/null 2>&1
sync
: >"$state/reimage_revoked"
exit 0
