#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice: creates it if need be, copies the committed tree to each worker, installs it,
# starts the run on all, and after a preemption does all that again: the run goes on from its last checkpoint.
#
#     TPU_NAME=my-slice ZONE=us-central2-b ACCELERATOR=v4-32 SPOT=1 launch/tpu_pod.sh \
#         --config=configs/psld_cifar.py --workdir=gs://my-bucket/runs/psld_cifar
#
# The same line again resumes the run. Environment:
#   TPU_NAME     name of the TPU VM (required)
#   ZONE         its zone (required)
#   PROJECT      its project (default: gcloud's)
#   ACCELERATOR  its kind, as v4-32: with it the slice is created when there is none, and created anew when it was preempted;
#                without it the slice must be there
#   VERSION      of the TPU's software (default: tpu-ubuntu2204-base)
#   SPOT         set to 1 for a slice that can be preempted
#   PYTHON       interpreter on the workers, 3.11 or newer (default: python3.11, installed by apt where it is missing)
#   FOLDER       folder in the home of the workers for tree and environment (default: sgmjax)
#   WAIT         seconds between two tries to get a slice (default: 60)
#   DRY_RUN      set to 1 to print the commands instead
# The work folder must be one that all workers see, in a bucket or on NFS: checkpoints are written by all of them. The slice
# is left as it is when the run has ended: `gcloud compute tpus tpu-vm delete` ends its cost.
# Written for bash 3.2 and the tools of BSD too, those of macOS.
set -euo pipefail

: "${TPU_NAME:?set TPU_NAME to the name of the TPU VM}" "${ZONE:?set ZONE to the zone of the TPU VM}"
python=${PYTHON:-python3.11}
folder=${FOLDER:-sgmjax}
case " $* " in
    *" --workdir"*) ;;
    *) echo "add --workdir=gs://BUCKET/FOLDER, or another that all workers see" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=("--zone=$ZONE")
[ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")

run() { if [ "${DRY_RUN:-0}" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

# READY, PREEMPTED, TERMINATED, ...; ABSENT where there is none
state() {
    if [ "${DRY_RUN:-0}" = 1 ]; then echo "${DRY_STATE:-READY}"; return; fi
    local said
    if said=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" --format='value(state)' 2>&1); then
        echo "$said"
    elif [[ $said == *NOT_FOUND* || $said == *"not found"* ]]; then
        echo ABSENT
    else
        echo "$said" >&2
        return 1
    fi
}

# Returns when the slice is there.
obtain() {
    local now kind=()
    [ "${SPOT:-0}" = 0 ] || kind+=(--spot)
    while now=$(state) || exit 1; [ "$now" != READY ]; do
        if [ -z "${ACCELERATOR:-}" ] && [ "$now" != CREATING ]; then
            echo "the slice $TPU_NAME in $ZONE is $now; set ACCELERATOR (as v4-32) to have it created" >&2
            exit 2
        fi
        case "$now" in
            PREEMPTED | TERMINATED | STOPPED)
                run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${where[@]}" --quiet || true ;;
        esac
        case "$now" in
            PREEMPTED | TERMINATED | STOPPED | ABSENT)
                if run gcloud compute tpus tpu-vm create "$TPU_NAME" "${where[@]}" --accelerator-type="$ACCELERATOR" \
                    --version="${VERSION:-tpu-ubuntu2204-base}" ${kind[@]+"${kind[@]}"}; then
                    [ "${DRY_RUN:-0}" = 0 ] || return 0
                    continue
                fi ;;
        esac
        echo "$TPU_NAME is $now; trying again in ${WAIT:-60} s" >&2
        sleep "${WAIT:-60}"
    done
}

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sgmjax.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
archive=$scratch/sgmjax.tar.gz
git -C "$root" archive --format=tar.gz --output="$archive" HEAD
arguments=$(printf '%q ' "$@")

# Copies, installs and trains on all workers.
train() {
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:sgmjax.tar.gz" "${where[@]}" --worker=all || return
    run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all --command="set -e
command -v $python > /dev/null || { sudo apt-get update -q; sudo apt-get install -qy $python $python-venv; }
mkdir -p $folder && tar -C $folder -xzf sgmjax.tar.gz && cd $folder
[ -x .venv/bin/python ] || $python -m venv .venv
.venv/bin/pip install -q -e '.[tpu,gcs]'
SGMJAX_DISTRIBUTED=1 .venv/bin/python -m sgmjax.train $arguments"
}

while true; do
    obtain
    status=0
    train || status=$?
    if [ "$status" = 0 ] || [ -z "${ACCELERATOR:-}" ]; then exit "$status"; fi
    sleep "${WAIT:-60}"  # until it is known whether the slice was taken away, or the run has failed by itself
    if [ "$(state)" = READY ]; then exit "$status"; fi
    echo "the slice $TPU_NAME was lost; the run goes on when there is another" >&2
done
