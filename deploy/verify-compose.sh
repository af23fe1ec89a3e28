#!/usr/bin/env bash
# Proves docker-compose.yml by running it, on whatever Docker engine the environment points at: builds, starts, sends 200
# mixed photos over REST and gRPC, checks every result, searches, reads a trace, kills every container and cuts every one
# off its networks while uploads go on, and compares the ledger with what was accepted. Ends within 15 minutes, with 1 at
# the first thing that is wrong. It has a project, volumes and ports of its own, and leaves nothing but images.
#   deploy/verify-compose.sh           KEEP=1 leaves it running for a look
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export COMPOSE_PROJECT_NAME=darkroom-verify COMPOSE_PROFILES=jaeger OTEL_EXPORTER_OTLP_ENDPOINT=http://jaeger:4318
export DARKROOM_HTTP_PORT=${DARKROOM_HTTP_PORT:-18000} DARKROOM_GRPC_PORT=${DARKROOM_GRPC_PORT:-18051}
export JAEGER_PORT=${JAEGER_PORT:-18686}
CUT_S=6
UNCUT="provision topology migrate client"
LOG=$(mktemp)

compose() { docker compose --project-directory . -f docker-compose.yml -f deploy/verify/compose.yml "$@"; }
client() { compose exec -T client python /client.py "$@"; }
say() { printf '\n== %4d s  %s\n' "$SECONDS" "$*"; }
die() { echo "FAILED: $*" >&2; exit 1; }

finish() {
  local status=$?
  trap - EXIT
  if ((status)); then
    compose ps -a --format '{{.Name}}  {{.Status}}' || true
    compose logs --no-color 2>&1 | grep -E '"level": "(warning|error|critical)"|\[error\]|FATAL' | tail -40 | cut -c1-500 || true
  fi
  rm -f "$LOG"
  [[ -n ${KEEP:-} ]] || compose --profile '*' down --volumes --timeout 5 >/dev/null 2>&1 || true
  say "$( ((status)) && echo "FAILED" || echo "ok: everything held, and everything is gone again")"
  exit "$status"
}
trap finish EXIT

# containers: the names of those that run for good
containers() { compose ps --format '{{.Service}} {{.Name}}' | while read -r service name; do
  [[ " $UNCUT " == *" $service "* ]] || echo "$name"; done; }

state() { docker inspect -f '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}healthy{{end}}' "$1"; }

# await_healthy NAME...: returns when all are
await_healthy() {
  local name deadline=$((SECONDS + 180))
  for name in "$@"; do
    until [[ $(state "$name") == "running healthy" ]]; do
      ((SECONDS < deadline)) || { docker logs --tail 15 "$name" 2>&1 | cut -c1-500; die "$name is $(state "$name")"; }
      sleep 1
    done
  done
}

# kill_9 PID: as the host's root, wherever the engine runs; `docker kill` would not be followed by a restart
kill_9() { docker run --rm --pid=host --user 0 --network none --cap-drop ALL --cap-add KILL --entrypoint python \
  darkroom-gateway -c "import os; os.kill($1, 9)"; }

crash() {
  local name=$1 started before=$SECONDS
  started=$(docker inspect -f '{{.State.StartedAt}}' "$name")
  kill_9 "$(docker inspect -f '{{.State.Pid}}' "$name")"
  until [[ $(docker inspect -f '{{.State.StartedAt}}' "$name") != "$started" ]]; do
    ((SECONDS < before + 60)) || die "$name was not started again"
    sleep 0.2
  done
  # Those that work need what these have; the others come back beside the next crash.
  [[ $name != *-@(postgres|rabbitmq|redis|gateway)-* ]] || await_healthy "$name"
  printf '   %-36s killed, back after %2d s\n' "$name" $((SECONDS - before))
}

cut_off() {
  local name=$1 service network networks
  service=$(docker inspect -f '{{index .Config.Labels "com.docker.compose.service"}}' "$name")
  networks=$(docker inspect -f '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}' "$name")
  for network in $networks; do docker network disconnect "$network" "$name"; done
  sleep "$CUT_S"
  for network in $networks; do docker network connect --alias "$service" --alias "$name" "$network" "$name"; done
  printf '   %-36s cut off for %d s\n' "$name" "$CUT_S"
}

say "build"
compose build --quiet
docker images --filter 'reference=darkroom-*' --format '{{.Repository}}  {{.Size}}' | sed 's/^/   /'

say "start"
compose up --detach --quiet-pull 2>&1 | grep -iE 'error|unhealthy' || true
for one_shot in provision topology migrate; do
  [[ $(docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "darkroom-verify-$one_shot-1") == "exited 0" ]] ||
    die "$one_shot has not ended well"
done
mapfile -t NAMES < <(containers)
await_healthy "${NAMES[@]}"
until curl -fsS "http://127.0.0.1:$DARKROOM_HTTP_PORT/readyz" | grep -q '"photo_ready":true'; do
  ((SECONDS < 400)) || die "no photo could be taken through"
  sleep 1
done
echo "   ${#NAMES[@]} containers, ready for photos"

say "200 mixed photos over REST and gRPC"
client upload 200
client settle
client ledger

say "search, and one photo's trace"
client search
client trace

say "memory after 200 photos"
docker stats --no-stream --format '{{.Name}}  {{.MemUsage}}' "${NAMES[@]}" | sort | sed 's/^/   /'

say "each container killed once, while uploads go on"
client storm >"$LOG" 2>&1 &
STORM=$!
for name in "${NAMES[@]}"; do crash "$name"; done
await_healthy "${NAMES[@]}"

say "each container cut off once, while uploads go on"
for name in "${NAMES[@]}"; do cut_off "$name"; done
await_healthy "${NAMES[@]}"
compose exec -T client touch /state/stop
wait "$STORM" || die "uploading did not survive it: $(tail -3 "$LOG")"
cat "$LOG"

say "what became of it"
client settle
client ledger
client search

say "memory after the storm"
docker stats --no-stream --format '{{.Name}}  {{.MemUsage}}' "${NAMES[@]}" | sort | sed 's/^/   /'
((SECONDS < 900)) || die "it took $SECONDS s, and 900 are allowed"
