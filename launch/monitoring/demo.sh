#!/bin/bash
# A small run on this machine with Prometheus and the page over it, until Ctrl-C:  make monitor-demo, or launch/monitoring/demo.sh RUNS

set -e
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=${VENV:-.venv}/bin
runs=${1:-runs/monitor-demo}
port=${PROMETHEUS_PORT:-9090}
mkdir -p "$runs"
started=()

finish() {          # what was started here, the last first; a run that is asked to stop saves
    trap - EXIT INT TERM
    for ((at = ${#started[@]} - 1; at >= 0; at--)); do kill "${started[at]}" 2> /dev/null || true; done
    wait
}
trap finish EXIT
trap 'exit 0' INT TERM

"$bin/vitscale" monitor "$runs" --prometheus "$runs/.prometheus" > "$runs/.prometheus.log"
if program=$(command -v prometheus); then
    "$program" --config.file="$runs/.prometheus/prometheus.yml" --storage.tsdb.path="$runs/.prometheus/data" \
        --web.listen-address="127.0.0.1:$port" >> "$runs/.prometheus.log" 2>&1 &
    started+=($!)
    sleep 2
    if kill -0 "${started[0]}" 2> /dev/null; then
        echo "Prometheus: http://127.0.0.1:$port/alerts; its files for Grafana: $runs/.prometheus/grafana"
    else
        echo "Prometheus did not start ($(grep -o 'err=.*' "$runs/.prometheus.log" | tail -n 1)); another port: PROMETHEUS_PORT=9091"
    fi
else
    echo "no program \`prometheus\` here: the page alone; Debian and Ubuntu have it as the package prometheus"
fi

"$bin/vitscale" train recipes/quickstart.yaml name=demo runs_dir="$runs" duration="200 epochs" parallel.processes=2 \
    checkpoint.every="2 epochs" evaluate.every="2 epochs" > "$runs/.demo.log" 2>&1 &
started+=($!)
echo "a run of two ranks begins; what it says: $runs/.demo.log"
"$bin/vitscale" monitor "$runs" &
started+=($!)
wait "${started[-1]}"
