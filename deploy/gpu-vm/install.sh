#!/usr/bin/env bash
# Installs gpu workers on a machine (Debian or Ubuntu with NVIDIA's driver and Python 3.11 or newer). Run it as root, from a checkout or an
# unpacked release. Run it again to upgrade: it keeps the settings and drains and restarts the workers one by one.
#
#   deploy/gpu-vm/install.sh [--root DIR] [--gpus N] [--no-start]
#
# --root DIR   write the files below DIR and change nothing else: for building an image, and for the tests
# --gpus N     the number of GPUs, instead of asking nvidia-smi
# --no-start   enable the workers without starting them
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SOURCE=$(cd "$HERE/../.." && pwd)
ROOT="" GPUS="" START=yes

while [[ $# -gt 0 ]]; do
    case $1 in
        --root) ROOT=${2:?--root needs a folder}; shift 2 ;;
        --gpus) GPUS=${2:?--gpus needs a number}; shift 2 ;;
        --no-start) START=no; shift ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
done

live() { [[ -z $ROOT ]]; } # whether to install on this machine itself

count_gpus() {
    if [[ -n $GPUS ]]; then
        echo "$GPUS"
    elif command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
        nvidia-smi --list-gpus | wc -l
    else
        echo "nvidia-smi finds no GPU: install NVIDIA's driver first, or say how many with --gpus N" >&2
        exit 1
    fi
}

lay_files() {
    install -d -m 0755 "$ROOT/opt/farm/bin" "$ROOT/opt/farm/share" "$ROOT/etc/systemd/system"
    install -d -m 0750 "$ROOT/etc/farm"
    install -m 0755 "$HERE/farm-notice" "$HERE/farm-publish" "$ROOT/opt/farm/bin/"
    install -D -m 0755 "$HERE/farm" "$ROOT/usr/local/bin/farm"
    install -m 0644 "$HERE/README.md" "$ROOT/opt/farm/share/"
    install -m 0644 "$HERE"/*.service "$HERE"/*.timer "$ROOT/etc/systemd/system/"
    # Never overwrite the operator's settings.
    [[ -e $ROOT/etc/farm/worker.env ]] || install -m 0640 "$HERE/worker.env.example" "$ROOT/etc/farm/worker.env"
}

make_user() {
    id farm >/dev/null 2>&1 || useradd --system --home-dir /var/cache/farm --shell /usr/sbin/nologin farm
    for group in video render; do
        if getent group "$group" >/dev/null; then usermod --append --groups "$group" farm; fi
    done
    chown -R root:farm /etc/farm
}

install_farm() {
    [[ -x /opt/farm/venv/bin/python ]] || python3 -m venv /opt/farm/venv
    local pip=(/opt/farm/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint "$SOURCE/constraints.txt")
    # torch first, alone: the package index decides its build; TORCH_INDEX_URL names another index.
    "${pip[@]}" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
    "${pip[@]}" --upgrade --upgrade-strategy only-if-needed "${SOURCE}[client,worker,otel]"
}

enable_units() {
    systemctl daemon-reload
    systemctl enable farm-notice.service
    if [[ $START == yes ]]; then systemctl restart farm-notice.service; fi
    for ((gpu = 0; gpu < $1; gpu++)); do
        systemctl enable "farm-worker@$gpu.service"
        # One by one: the others render while one drains and loads its checkpoint again.
        if [[ $START == yes ]]; then systemctl restart "farm-worker@$gpu.service"; fi
    done
}

if live && [[ $EUID -ne 0 ]]; then
    echo "run this as root, or with --root DIR to lay the files elsewhere" >&2
    exit 1
fi
gpus=$(count_gpus)
lay_files
if live; then
    make_user
    install_farm
    enable_units "$gpus"
    echo "installed: $gpus worker(s); settings in /etc/farm/worker.env, logs by journalctl -u 'farm-worker@*'"
else
    for ((gpu = 0; gpu < gpus; gpu++)); do
        install -d "$ROOT/etc/systemd/system/multi-user.target.wants"
        ln -sfn "../farm-worker@.service" "$ROOT/etc/systemd/system/multi-user.target.wants/farm-worker@$gpu.service"
    done
    ln -sfn ../farm-notice.service "$ROOT/etc/systemd/system/multi-user.target.wants/farm-notice.service"
    echo "laid below $ROOT: $gpus worker(s)"
fi
