#!/bin/sh
# kraken.sh central|node IP HERD_IP UPSTREAM DIR: what Kraken runs on one host.
set -eu
role=$1 ip=$2 herd=$3 upstream=$4 dir=$5
base=${KRAKEN_CONFIG:?the directory config of a checkout of github.com/uber/kraken}
pids=
trap 'kill $pids 2>/dev/null || true' TERM INT EXIT

tls='tls: {name: kraken, server: {disabled: true}, client: {disabled: true}}'
plain='security: {tls: {client: {disabled: true}}}'

# config NAME: the head of its settings. Sockets, caches and logs lie below DIR: hosts share one file system here.
config() {
    mkdir -p "$dir/$1/nginx" "$dir/$1/log"
    cp "$base/$1/base.yaml" "$dir/$1-base.yaml"  # `extends` is looked up beside the file
    cat <<END
extends: $1-base.yaml
zap: {outputPaths: [stdout], errorOutputPaths: [stdout]}
nginx: {name: kraken-$1, cache_dir: $dir/$1/nginx/, log_dir: $dir/$1/log/}
$tls
END
}

start() {
    "$@" &
    pids="$pids $!"
}

if [ "$role" = node ]; then
    { config agent; cat <<END
scheduler: {torrentlog: {disable: true}, conn: {bandwidth: {enable: false}}}
diskstore: {root_dir: $dir/agent/store/}
store: {download_dir: $dir/agent/download/, cache_dir: $dir/agent/cache/}
registry: {docker: {version: 0.1, http: {net: unix, addr: $dir/agent/registry.sock}}}
peer_id_factory: addr_hash
allowed_cidrs: [127.0.0.1]
tracker: {hosts: {static: ["$herd:15003"]}}
build_index: {hosts: {static: ["$herd:15004"]}}
END
    } > "$dir/agent.yaml"
    start kraken-agent --config="$dir/agent.yaml" --peer-ip="$ip" --peer-port=16001 --agent-server-port=16002 \
        --agent-registry-port=16000
    wait
    exit
fi

{ config origin; cat <<END
scheduler: {torrentlog: {disable: true}, conn: {bandwidth: {enable: false}}}
localdb: {source: $dir/origin/origin.db}
castore: {upload_dir: $dir/origin/upload/, cache_dir: $dir/origin/cache/}
cadownloadstore: {download_dir: $dir/origin/download/, cache_dir: $dir/origin/cache-partial/}
blobserver: {listener: {net: unix, addr: $dir/origin/origin.sock}}
backends: [{namespace: ".*", backend: {registry_blob: {address: "$upstream", $plain}}}]
cluster: {static: ["$herd:15002"]}
hashring: {max_replica: 1}
END
} > "$dir/origin.yaml"
{ config tracker; cat <<END
peerstore: {redis: {addr: "127.0.0.1:14001"}}
trackerserver: {announce_interval: 3s, listener: {net: unix, addr: $dir/tracker/tracker.sock}}
origin: {hosts: {static: ["$herd:15002"]}}
END
} > "$dir/tracker.yaml"
{ config build-index; cat <<END
localdb: {source: $dir/build-index/index.db}
store: {upload_dir: $dir/build-index/upload/, cache_dir: $dir/build-index/cache/}
tagserver: {listener: {net: unix, addr: $dir/build-index/tags.sock}}
backends: [{namespace: ".*", backend: {registry_tag: {address: "$upstream", $plain}}}]
cluster: {hosts: {static: ["$herd:15004"]}}
origin: {hosts: {static: ["$herd:15002"]}}
tag_types: [{namespace: ".*", type: docker, root: tags}]
tag_store: {write_through: false}
remotes: {}
END
} > "$dir/build-index.yaml"

start redis-server --port 14001 --bind 127.0.0.1 --save ''
sleep 1
start kraken-origin --config="$dir/origin.yaml" --blobserver-hostname="$herd" --blobserver-port=15002 \
    --peer-ip="$ip" --peer-port=15001
start kraken-build-index --config="$dir/build-index.yaml" --port=15004
start kraken-tracker --config="$dir/tracker.yaml" --port=15003
wait
