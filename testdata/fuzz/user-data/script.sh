#!/bin/sh
set -e
for disk in /dev/sd?; do wipefs -a "$disk"; done
cat <<END | sfdisk /dev/vdb
label: gpt
END
