#!/bin/sh
# The tests run on a real RabbitMQ: one that runs already, one that is installed, or one that this installs.
set -eu
if [ -n "${DARKROOM_TEST_BROKER_URL:-}" ]; then
    exit 0
fi
if command -v rabbitmq-server >/dev/null || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    exit 0
fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing rabbitmq-server from Debian ..."
    # The package would start a node of its own on the standard port; the tests start theirs on free ones.
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.darkroom
    chmod +x /usr/sbin/policy-rc.d.darkroom
    [ -e /usr/sbin/policy-rc.d ] || ln -s policy-rc.d.darkroom /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d.darkroom; [ -L /usr/sbin/policy-rc.d ] && rm -f /usr/sbin/policy-rc.d || true' EXIT
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server >/dev/null
    exit 0
fi
cat >&2 <<'TEXT'
The tests need RabbitMQ 3.10 or newer. Install it:
    Debian, Ubuntu   sudo apt-get install rabbitmq-server
    macOS            brew install rabbitmq
or name one that runs (its darkroom queues are emptied):
    DARKROOM_TEST_BROKER_URL=amqp://guest:guest@localhost:5672// make test
TEXT
exit 1
