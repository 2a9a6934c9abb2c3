#!/bin/sh
# Generates service/safegraft/v1 from the protos beside this script.
#
#     protos/generate.sh PYTHON [OUT]
#
# PYTHON has grpcio-tools 1.76 in an environment of its own: code from a newer generator demands the newest protobuf at
# import, and the generator's own protobuf must not replace the project's. OUT is `service` unless a check asks for the
# code elsewhere, to compare. Only *_service.proto get gRPC code.
set -eu

python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
out=${2:-$root/service}

cd "$root/protos"
"$python" -m grpc_tools.protoc --proto_path=. --python_out="$out" --pyi_out="$out" safegraft/v1/*.proto
"$python" -m grpc_tools.protoc --proto_path=. --grpc_python_out="$out" safegraft/v1/*_service.proto
