#!/bin/sh
# Installs what the clients in Go, C++ and shell need where it is missing: on Debian 12 or its like, as root. `make test` calls it.
set -e
missing() {
  for command in jq openssl go protoc protoc-gen-go protoc-gen-go-grpc grpc_cpp_plugin g++ make pkg-config ccache; do
    command -v "$command" >/dev/null || echo "$command"
  done
  for package in google.golang.org/grpc google.golang.org/genproto/googleapis/rpc google.golang.org/protobuf; do
    test -d "/usr/share/gocode/src/$package" || echo "$package"
  done
  pkg-config --exists grpc++ protobuf openssl 2>/dev/null || echo libgrpc++-dev
  command -v node >/dev/null || echo "node (20 or newer, with npm)"
}
packages="jq openssl golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-google-genproto-dev golang-github-golang-protobuf-1-5-dev
  protoc-gen-go protoc-gen-go-grpc g++ make pkg-config ccache libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libssl-dev"

test -n "$(missing)" || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  # shellcheck disable=SC2086 # a list
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null
fi
test -n "$(missing)" || exit 0
echo "The clients in other languages cannot be built here, and tests/system/clients will fail. Missing:" $(missing)
echo "On Debian 12, as root: apt-get install -y --no-install-recommends" $packages
echo "Or test without them: .venv/bin/python -m pytest --ignore tests/system/clients"
