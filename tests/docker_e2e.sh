#!/usr/bin/env bash
# From a bare Debian machine to equal scores: base image, image, the compiled pipeline by kfp's DockerRunner with a
# real MLflow server, and `dvc repro` with the same numbers. Run as root: `make docker-e2e`, about 12 GB of disk.
#
# No image registry is asked: the base is Debian's own Python 3.11 under the public name that docker/Dockerfile has.
# The daemon is one of its own, with its data in a folder that goes at the end, as does everything else started here.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "docker_e2e: run as root, which a Docker daemon wants" >&2; exit 2; }

base=python:3.11-slim-bookworm
image=un2clip:$(python -c "import un2clip; print(un2clip.__version__)")
work=$(mktemp -d "${TMPDIR:-/tmp}/un2clip-docker.XXXXXX")
started=()
export DOCKER_HOST=unix://$work/docker.sock DOCKER_BUILDKIT=0 # Debian's client has no buildx

clean() {
  for pid in ${started[@]+"${started[@]}"}; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done || true
  # a debootstrap that was cut off leaves its /proc mounted, into which rm must not go
  for mounted in exec/netns/default root/proc root/sys; do umount "$work/$mounted" 2>/dev/null || true; done
  rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

step() { printf '\n== %4d s  %s\n' "$SECONDS" "$*"; }

until_it_works() { # SECONDS COMMAND...: try once a second
  local left=$1 && shift
  until "$@" >/dev/null 2>&1; do
    [ $((left -= 1)) -gt 0 ] || { echo "docker_e2e: gave up on: $*" >&2; return 1; }
    sleep 1
  done
}

step "docker.io, debootstrap"
missing=()
for package in docker.io debootstrap iptables; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

step "the daemon"
# Ulimits: a container must not ask for more than this machine's own hard limit. runc: crun refuses hybrid cgroups.
files=$(ulimit -Hn)
[ "$files" = unlimited ] && files=1048576
dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/docker.pid" -H "$DOCKER_HOST" \
  --default-ulimit "nofile=$files:$files" --bridge=none --iptables=false >"$work/docker.log" 2>&1 &
started+=($!)
until_it_works 60 docker info || { tail "$work/docker.log"; exit 1; }

step "the base image $base"
mirror=$(grep -hoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1) || true
debootstrap --variant=minbase \
  --include=python3.11-minimal,python3.11-venv,libpython3.11-stdlib,python3-distutils,python3-pip,ca-certificates \
  bookworm "$work/root" ${mirror:+"${mirror%% *}"} >"$work/debootstrap.log" || { tail "$work/debootstrap.log"; exit 1; }
# A package index behind a certificate authority of one's own: what this machine trusts, the build trusts.
cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
rm -rf "$work/root/usr/lib/python3.11/EXTERNALLY-MANAGED" "$work"/root/var/cache/apt/archives/*.deb
ln -sf python3 "$work/root/usr/bin/python"
tar -C "$work/root" -c . | docker import - "$base"
rm -rf "$work/root"

step "the image $image"
docker build --network=host --file docker/Dockerfile --target cpu \
  --build-arg VERSION="${image#*:}" --build-arg REVISION="$(git rev-parse HEAD)" --tag "$image" . >"$work/build.log" || { tail -50 "$work/build.log"; exit 1; }
docker image ls
docker run --rm --network=host "$image" doctor
docker run --rm --entrypoint cat "$image" /sbom.json | python -c "import json, sys; assert json.load(sys.stdin)['components']"

step "an MLflow server"
port=$(python -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
export UN2CLIP_DOCKER_MLFLOW=http://127.0.0.1:$port
(cd "$work" && exec mlflow server --backend-store-uri "sqlite:///$work/mlflow.db" --workers 1 \
  --artifacts-destination "$work/artifacts" --host 127.0.0.1 --port "$port") >"$work/mlflow.log" 2>&1 &
started+=($!)
until_it_works 120 curl -fsS "$UN2CLIP_DOCKER_MLFLOW/health" || { tail "$work/mlflow.log"; exit 1; }

step "the pipeline in containers, and dvc repro"
OMP_NUM_THREADS=1 python -m pytest -s --basetemp "$work/pytest" tests/e2e/test_docker.py
step "done"
