#!/bin/sh
# The first day of a consortium of three simulated hospitals, all of it in one folder: FOLDER/coordinator and
# FOLDER/SITE. On real machines each side runs its own commands, files go by mail, and people compare the
# fingerprints by telephone; here they are read off what was printed.
#   sh examples/demo/setup.sh FOLDER
set -eu
umask 077
cd "$1"
sites="birmingham glasgow leeds"

fingerprint() { grep -oE '^  [0-9a-f]{4}( [0-9a-f]{4})+$' "$1"; }

if ! [ -d data ]; then
    pm1-sim cohort model=tiny people=400 sites=3 cohorts=data
fi

pm1-server init --folder coordinator --name "Three simulated hospitals" --address gateway:8443
mkdir -p exchange
for site in $sites; do
    pm1-site init --folder "$site" --site "$site" > exchange/init.txt
    pm1-site prepare data/*/sites/"$site"/site.yaml store="$site"/store > exchange/"$site".md
    pm1-site privacy open "$site"/state --site "$site" --epsilon 20 --delta 1e-5
    pm1-server enrol --folder coordinator "$site"/"$site".request \
        --fingerprint "$(fingerprint exchange/init.txt)" > exchange/enrol.txt
done
for site in $sites; do
    pm1-server kit --folder coordinator "$site"  # again: by now it has the keys of all sites, for secure sums
    pm1-site join --folder "$site" coordinator/kits/"$site".kit --fingerprint "$(fingerprint exchange/enrol.txt)"
done
cp data/*/study.yaml data/*/variants.tsv data/*/relatives.tsv coordinator/
rm exchange/init.txt exchange/enrol.txt
echo "Ready: $1"
