#!/bin/bash
# Makes the signatures of this folder anew, with keys that are gone when it ends.
# Needs gpg, minisign, zstd and cargo. Everything is dated back, so that no clock takes a signature for one of the future.
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'gpgconf --homedir "$scratch/gnupg" --kill all; rm -rf "$scratch"' EXIT
rm -f -- *.gpg *.pub *.minisig *.json *.fingerprint SHA256SUMS*

# minisign: a list of two lines, signed by a key in both forms, and by another key.
printf 'the bytes that are signed\nand nothing else\n' > signed.txt
for name in minisign other; do
    minisign -G -W -p "$name.pub" -s "$scratch/$name.key" > "$scratch/log"
done
minisign -S -s "$scratch/minisign.key" -m signed.txt -t 'a trusted comment' > "$scratch/log"
minisign -S -l -s "$scratch/minisign.key" -m signed.txt -x signed.txt.legacy.minisig > "$scratch/log"
minisign -S -s "$scratch/other.key" -m signed.txt -x signed.txt.other.minisig > "$scratch/log"

# The manifest of an image, signed.
zstd --quiet --decompress ../images/zlib-64k.qcow2.zst -o "$scratch/zlib-64k.qcow2"
cargo run --quiet -- manifest "$scratch/zlib-64k.qcow2" --output zlib-64k.qcow2.manifest.json > "$scratch/log"
minisign -S -s "$scratch/minisign.key" -m zlib-64k.qcow2.manifest.json > "$scratch/log"

# OpenPGP: keys of five kinds.
export GNUPGHOME=$scratch/gnupg
mkdir -m 700 "$GNUPGHOME"
at() { gpg --batch --quiet --no-tty --faked-system-time "$@" 2> "$scratch/log" || { cat "$scratch/log"; exit 1; }; }
key() { at "$2" --passphrase '' --quick-gen-key "$1 <$1@example.org>" ed25519 sign "$3"; }
key good 20240101T000000 never
key other 20240101T000000 never
key revoked 20240101T000000 never
key expired 20200101T000000 2d

gpg --batch --no-tty --list-keys --with-colons good@example.org 2> "$scratch/log" |
    awk -F: '$1 == "fpr" { print $10; exit }' > good.fingerprint

# What is listed is the unpacked images.
{
    for name in zlib-64k zlib-512 v3-4k; do
        sum=$(zstd --quiet --decompress --stdout "../images/$name.qcow2.zst" | sha256sum)
        echo "${sum%% *} *$name.qcow2"
    done
    # The name of one image with the digest of another.
    echo "${sum%% *} *v3-64k.qcow2"
} > SHA256SUMS

sign() { at 20240102T000000 --yes --local-user "$1@example.org" "${@:2}" SHA256SUMS; }
sign good --output SHA256SUMS.gpg --detach-sign
sign good --output SHA256SUMS.clear --clearsign
sign good --output SHA256SUMS.sha1 --digest-algo SHA1 --detach-sign
sign good --output SHA256SUMS.inside --sign
sign good --output SHA256SUMS.both --local-user other@example.org --detach-sign
sign good --output SHA256SUMS.armoured --armor --detach-sign
sign other --output SHA256SUMS.other --detach-sign
sign revoked --output SHA256SUMS.revoked --detach-sign
sign good --output SHA256SUMS.lapsed --default-sig-expire 1d --detach-sign
at 20200101T010000 --yes --local-user expired@example.org --output SHA256SUMS.expired --detach-sign SHA256SUMS
revocation=$(grep -l revoked "$GNUPGHOME"/openpgp-revocs.d/*.rev)
sed 's/^:---/---/' "$revocation" > "$scratch/revoked.rev"
at 20240103T000000 --import "$scratch/revoked.rev"
gpg --batch --quiet --no-tty --export good@example.org revoked@example.org expired@example.org > keyring.gpg
