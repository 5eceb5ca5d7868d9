#!/usr/bin/env bash
# Three hospitals pass a segmentation network on, and it becomes what one machine with all scans would have made of it.
#
#   garda phantom --out data/phantom
#   docs/hospital/three_hospitals.sh data/phantom runs/three
#
# A has labelled scans. B and C have scans of other scanners and no labels. They share nothing: each has a folder of its
# own with its own scans, its own list of them and its own keys, and every command below runs inside one of them. What
# goes from one to the next is one zip file, the package: weights of networks, a few numbers, and a ledger of what was
# done. Two more things are told beforehand or beside it, and neither holds anything of a patient: each hospital's
# public key, and the package's digest (64 digits), over the telephone.
#
# At the end one machine learns the same sequence with all scans in one place, and the two results are compared.
#
# Usage: three_hospitals.sh PHANTOM_DATA WORK [OPTION...]
#   PHANTOM_DATA  what `garda phantom` has written
#   WORK          folder that is written; the same command again goes on where it ended
#   OPTION        for `garda run`: what decides the learning, such as --set source.steps=100 or --seed 1
# garda is looked for on the PATH, or is what the environment variable GARDA names. With one thread on a busy machine
# the whole took 22 minutes.

set -euo pipefail

SITE_A=bssfp_1p5t # the phantom's labelled site: bright blood at 1.5 tesla
SITE_B=tse_1p5t   # black blood: the contrast turns around
SITE_C=lge_3t     # late enhancement at 3 tesla

fail() {
    echo "three_hospitals.sh: $*" >&2
    exit 1
}

say() {
    echo
    echo "== $*"
}

garda() {
    "$GARDA" "$@"
}

[ $# -ge 2 ] || fail "expected PHANTOM_DATA and WORK; give a folder of \`garda phantom\` and one that is to be written"
GARDA=$(type -P "${GARDA:-garda}") || fail "garda is not found; install it, or set GARDA to its path"
case $GARDA in */*) GARDA=$(cd "$(dirname "$GARDA")" && pwd)/$(basename "$GARDA") ;; esac
[ -f "$1/manifests/task.yaml" ] || fail "$1: holds no phantom; write one with \`garda phantom --out $1\`"
PHANTOM=$(cd "$1" && pwd)
mkdir -p "$2"
WORK=$(cd "$2" && pwd)
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
shift 2 # what is left are options for the learning
unset MLFLOW_TRACKING_URI # each hospital's figures stay in its own folder

# Give a hospital its folder, with the scans of its own site and the list of them (the manifest), and nothing else. The
# phantom has labels for every site. What learns opens those of A alone; B and C use theirs to score their test scans.
furnish() { # FOLDER SITE
    mkdir -p "$1/data"
    [ -d "$1/data/$2" ] || cp -R "$PHANTOM/$2" "$1/data/$2"
    cp "$PHANTOM/manifests/$2.csv" "$1/$2.csv"
}

# Step into a hospital. GARDA_HOME is where garda keeps the key by which it hides names of patients and lists: each
# hospital has its own.
enter() { # FOLDER
    cd "$1"
    export GARDA_HOME=$1/garda_home
}

# Each hospital makes a pair of keys, once. NAME.key signs and stays; NAME.key.pub lets others check what was signed.
make_keys() { # NAME
    [ -e "$1.key" ] || garda keygen "$1.key"
}

# The digest that a command has printed, as somebody would read it out over the telephone.
digest() { # FILE
    sed -n 's/^package \([0-9a-f]*\).*/\1/p' "$1" | head -n 1
}

# A pipeline says what is learnt, in which order, and how. This one is pipelines/phantom.yaml with other sites.
write_pipeline() { # MANIFESTS TARGETS
    sed -e "s|^manifests:.*|manifests: $1|" -e "s|^source:.*|source: $SITE_A|" -e "s|^targets:.*|targets: $2|" \
        -e "s|^config:.*|config: small.yaml|" -e "/^#/d" "$REPOSITORY/pipelines/phantom.yaml" >pipeline.yaml
    cp "$REPOSITORY/configs/small.yaml" small.yaml
}

A=$WORK/hospital_A B=$WORK/hospital_B C=$WORK/hospital_C ONE=$WORK/one_machine
furnish "$A" $SITE_A
furnish "$B" $SITE_B
furnish "$C" $SITE_C

say "before anything is learnt: each hospital makes its keys, and gives the public one to the others"
for name in A B C; do
    (enter "$WORK/hospital_$name" && make_keys $name)
done
cp "$A/A.key.pub" "$B/"
cp "$A/A.key.pub" "$B/B.key.pub" "$C/"

say "hospital A: learns its own labelled scans"
(
    enter "$A"
    # The task (classes, grid) and the settings are A's to choose. They travel inside the package, so that B and C need
    # no configuration. The pipeline names no target: A knows of no other hospital's scans.
    cp "$PHANTOM/manifests/task.yaml" task.yaml
    write_pipeline . "[]"
    # --sign signs A's line of the ledger. --audit looks for A's patients in what the generator gives away, while their
    # scans are still there, and writes the figures into the ledger.
    garda run pipeline.yaml --data data --out run --sign A.key --audit "$@"
    # The package as one file. The command prints the digest that A reads out to B.
    rm -f a.zip
    garda export run --to zip --out a.zip | tee told.txt
)

say "the package goes from A to B"
cp "$A/a.zip" "$B/"

say "hospital B: checks the package, learns its own scans without their labels"
(
    enter "$B"
    told=$(digest "$A/told.txt") # over the telephone
    # --expect: is it the very package that A has sent? --trust: has A signed its line, with A's key?
    garda verify a.zip --expect "$told" --trust "$SITE_A=A.key.pub"
    garda adapt a.zip $SITE_B.csv --data data --out b.zip --expect "$told" --trust "$SITE_A=A.key.pub" \
        --sign B.key --audit | tee told.txt
)

say "the package goes from B to C"
cp "$B/b.zip" "$C/"

say "hospital C: does the same with what B has sent"
(
    enter "$C"
    told=$(digest "$B/told.txt")
    garda verify b.zip --expect "$told" --trust "$SITE_A=A.key.pub" --trust "$SITE_B=B.key.pub"
    # C is the last one, so its package stays a folder. With a name that ends in .zip it could go on as before.
    garda adapt b.zip $SITE_C.csv --data data --out package --expect "$told" --trust "$SITE_A=A.key.pub" \
        --trust "$SITE_B=B.key.pub" --sign C.key --audit | tee told.txt
)

say "hospital C: uses what all three have made, on the last scan of its list"
(
    enter "$C"
    rm -rf labelmaps
    garda predict package "data/$(tail -n 1 $SITE_C.csv | cut -d , -f 4)" --domain $SITE_C --out labelmaps
)

say "for comparison: one machine that has all scans learns the three sites in a row"
(
    mkdir -p "$ONE"
    enter "$ONE"
    write_pipeline "$PHANTOM/manifests" "[$SITE_B, $SITE_C]"
    garda run pipeline.yaml --data "$PHANTOM" --out run "$@"
)

say "are the two results the same, byte by byte?"
# Method `garda` leaves the segmenter as A has made it; what B and C add lies in the generator and in the statistics: an
# adapter of the network for each site. So all files of weights are compared, not the segmenter alone.
for file in segmenter teacher generator statistics; do
    one=$ONE/run/stages/2-$SITE_C/package/$file.safetensors
    cmp "$C/package/$file.safetensors" "$one" || fail "$file.safetensors differs between the chain and one machine"
done
echo "IDENTICAL: segmenter, teacher, generator and statistics of A -> B -> C are those of one machine, byte by byte"
