#!/bin/sh
# Builds llama.cpp's own programs into FOLDER/bin: the judge of our plans for it.
#
# The source is the tree that the llama-cpp-python package carries, from the Python package index;
# its sum is checked. GGML_RPC gives ggml-rpc-server, a device that llama.cpp takes for a GPU. A
# small patch lets the server claim any size (GGML_RPC_MEMORY=BYTES) and the device take over the
# work of large batches, as CUDA devices do (GGML_RPC_OFFLOAD=1); without these variables nothing
# differs. Ten minutes on two idle cores. Needs a C++ compiler and patch; cmake and ninja come by
# pip if missing.
#
#   sh scripts/build_llamacpp.sh FOLDER [PYTHON]
#   export MEMPLAN_LLAMA_FIT_PARAMS=FOLDER/bin/llama-fit-params
set -eu

VERSION=0.3.36
SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
TARGETS="llama-fit-params ggml-rpc-server llama-server llama-completion llama-gguf-split"

[ $# -ge 1 ] || { echo "usage: sh $0 FOLDER [PYTHON]" >&2; exit 2; }
patch=$(cd "$(dirname "$0")" && pwd)/llamacpp_offload.patch
folder=$1
python=${2:-python3}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
archive=llama_cpp_python-$VERSION.tar.gz
source=$folder/llama_cpp_python-$VERSION/vendor/llama.cpp

if ! [ -f "$folder/$archive" ]; then
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$VERSION"
fi
echo "$SHA256  $folder/$archive" | sha256sum --check --quiet
if ! [ -d "$source" ]; then
    tar -xzf "$folder/$archive" -C "$folder"
    patch --quiet -p1 -d "$source" < "$patch"
fi

if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
    "$python" -m venv "$folder/tools"
    "$folder/tools/bin/python" -m pip install --quiet --disable-pip-version-check cmake ninja
    PATH=$folder/tools/bin:$PATH
fi

cmake -S "$source" -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DGGML_RPC=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
# shellcheck disable=SC2086
nice cmake --build "$folder" --target $TARGETS
"$folder/bin/llama-fit-params" --version
