#!/usr/bin/env bash
# The program without its repository: a wheel, an environment of its own, and a folder anywhere. `make wheel`.
#
# The packages are those of .venv, which the new environment reads and does not copy. FULL=1 installs them anew, by uv from
# the registry (5 GB), runs the whole demo, and tries uvx.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
work=$(mktemp -d "${TMPDIR:-/tmp}/un2clip-wheel.XXXXXX")
trap 'rm -rf "$work"' EXIT
step() { printf '\n== %4d s  %s\n' "$SECONDS" "$*"; }

step "the wheel"
git archive HEAD | tar -x -C "$(mkdir "$work/source" && echo "$work/source")" # so that nothing else gets into it
python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$work" "$work/source"
rm -r "$work/source"
wheel=$(echo "$work"/*.whl)

step "an environment"
if [ -n "${FULL:-}" ]; then
  uv venv --quiet --python "$(python -c "import sys; print(sys.executable)")" "$work/env"
  uv pip install --quiet --python "$work/env" "un2clip[pipelines] @ file://$wheel"
else
  python -m venv --without-pip "$work/env"
  echo "$packages" >"$work/env/lib/$(basename "$(dirname "$packages")")/site-packages/packages.pth"
  python -m pip --python "$work/env" install --quiet --disable-pip-version-check --no-deps --ignore-installed "$wheel"
fi
unset PYTHONPATH
export PATH=$work/env/bin:$PATH UN2CLIP_TRACKING=off
cd "$work"
python -c "import un2clip; assert un2clip.__file__.startswith('$work/env'), un2clip.__file__"

step "doctor, init"
un2clip doctor
un2clip init project
cd project

if [ -n "${FULL:-}" ]; then
  step "the demo"
  dvc repro
  un2clip show
  step "uvx"
  uvx --from "un2clip[pipelines] @ file://$wheel" un2clip init "$work/other"
  (cd "$work/other" && uvx --from "un2clip[pipelines] @ file://$wheel" dvc repro --dry shapes)
else
  step "the first stages, of a small world"
  for number in train_scenes:192 heldout_scenes:48 pairs_per_type:4 images_per_class:1 segmentation_images:3 \
    probe_train_scenes:160 probe_test_per_attribute:30; do
    sed -i -E "s/^( +${number%:*}:) [0-9]+/\1 ${number#*:}/" world.yaml
  done
  dvc repro ingest backbones
  test -f models/backbones/clip/open_clip_model.safetensors # the laptop pair, which the wheel has
fi
step "done"
