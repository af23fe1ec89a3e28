#!/bin/sh
# The tests look at the pages in a real browser: one that is installed, or one that this installs.
set -eu
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing chromium from Debian ..."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
    exit 0
fi
cat >&2 <<'TEXT'
The tests need Chromium or Chrome. Install it:
    Debian, Ubuntu   sudo apt-get install chromium
    macOS            brew install --cask chromium
TEXT
exit 1
