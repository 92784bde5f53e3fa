#!/bin/sh
# Fetch the bundle of plotly that report pages carry (scatter, bars, heat maps: a third of the whole), with its licence. Needs npm.
#   sh tools/plotly.sh 4.1.1
set -eu
home=$(cd "$(dirname "$0")/../src/multicrop/compare" && pwd)
folder=$(mktemp -d)
cd "$folder"
npm pack --silent "plotly.js-cartesian-dist-min@$1" >/dev/null
tar -xzf ./*.tgz
gzip -9 -n -c package/plotly-cartesian.min.js >"$home/plotly.min.js.gz"
cp package/LICENSE "$home/plotly.LICENSE"
rm -r "$folder"
