#!/usr/bin/env bash
# Debian's Chromium for the tests of pages, where none is there. Without it those tests are skipped,
# so nothing here fails: where it cannot be installed, it says what would do it.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" > /dev/null; then exit 0; fi
done
later() { echo "the tests of pages are left out: no Chromium ($1)" >&2; exit 0; }
command -v apt-get > /dev/null || later "install chromium by this system's own means"
[ "$(id -u)" -eq 0 ] || later "sudo apt-get install chromium"
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core; } \
  > /dev/null || later "apt-get install chromium failed"
