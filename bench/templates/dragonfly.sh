#!/bin/sh
# dragonfly.sh central|node IP SCHEDULER_IP UPSTREAM DIR: what Dragonfly runs on one host.
set -eu
role=$1 ip=$2 scheduler=$3 upstream=$4 dir=$5
pids=
trap 'kill $pids 2>/dev/null || true' TERM INT EXIT
mkdir -p "$dir/log" "$dir/cache" "$dir/plugins" "$dir/store" "$dir/scheduler"

cat > "$dir/dynconfig.yaml" <<END
scheduler: {addrs: ["$scheduler:8002"]}
END
cat > "$dir/dfdaemon.yaml" <<END
host: {ip: $ip, hostname: "$(basename "$dir")"}
server: {pluginDir: $dir/plugins, cacheDir: $dir/cache}
download: {protocol: tcp, server: {socketPath: $dir/dfdaemon.sock}}
upload: {server: {port: 4000}}
seedPeer: {enable: $([ "$role" = central ] && echo true || echo false), type: super, clusterID: 1}
storage: {dir: $dir/store, server: {tcpPort: 4005, quicPort: 4006}}
proxy:
  server: {port: 4001}
  rules: [{regex: "blobs/sha256.*"}]
  registryMirror: {addr: "$upstream"}
metrics: {server: {port: 4002}}
health: {server: {port: 4003}}
stats: {server: {port: 4004}}
END

if [ "$role" = central ]; then
    cat > "$dir/scheduler.yaml" <<END
server: {advertiseIP: $ip, port: 8002, logDir: $dir/log, pluginDir: $dir/plugins, dataDir: $dir/scheduler}
job: {enable: false}
metrics: {enable: false}
END
    cat > "$dir/scheduler-dynconfig.yaml" <<END
seedPeerClusterConfig: {loadLimit: 2000}
schedulerClusterConfig: {candidateParentLimit: 3, filterParentLimit: 15}
schedulerClusterClientConfig: {loadLimit: 200}
END
    scheduler --config "$dir/scheduler.yaml" --dynconfig "$dir/scheduler-dynconfig.yaml" &
    pids="$pids $!"
    sleep 2
fi
dfdaemon --config "$dir/dfdaemon.yaml" --dynconfig "$dir/dynconfig.yaml" --log-dir "$dir/log" &
pids="$pids $!"
wait
