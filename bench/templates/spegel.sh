#!/bin/sh
# spegel.sh NODE NODE_IP NODE_IPS UPSTREAM DIR: a containerd and a Spegel on one node. The first node pulls the image.
set -eu
node=$1 ip=$2 first=${3%%,*} upstream=$4 dir=$5
pids=
trap 'kill $pids 2>/dev/null || true' TERM INT EXIT

mkdir -p "$dir/certs.d/_default" "$dir/spegel"
printf '[host."http://127.0.0.1:30000"]\n  capabilities = ["pull", "resolve"]\n' > "$dir/certs.d/_default/hosts.toml"
cat > "$dir/containerd.toml" <<END
version = 2
root = "$dir/containerd"
state = "$dir/state"
[grpc]
  address = "$dir/containerd.sock"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "$dir/certs.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  discard_unpacked_layers = false
END
containerd --config "$dir/containerd.toml" &
pids="$pids $!"
until ctr -a "$dir/containerd.sock" version > /dev/null 2>&1; do sleep 0.1; done

if [ "$ip" = "$first" ]; then
    repository=${SPEGEL_REPOSITORY:-bench/i0}
    ctr -a "$dir/containerd.sock" -n k8s.io content fetch --plain-http "$upstream/$repository:v1"
fi

spegel registry \
    --registry-addr 127.0.0.1:30000 --router-addr "$ip:5001" --metrics-addr 127.0.0.1:9090 \
    --bootstrap-kind http --http-bootstrap-addr "$ip:5002" --http-bootstrap-peer "http://$first:5002/id" \
    --containerd-sock "$dir/containerd.sock" --containerd-namespace k8s.io \
    --containerd-content-path "$dir/containerd/io.containerd.content.v1.content" \
    --containerd-registry-config-path "$dir/certs.d" \
    --mirrored-registries "http://$upstream" --mirror-resolve-timeout 5s --data-dir "$dir/spegel" &
pids="$pids $!"
wait
