#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice: copies the committed tree to each, installs it, starts the run on all.
#
#     TPU_NAME=my-slice ZONE=us-central2-b launch/tpu_pod.sh \
#         --config=configs/psld_cifar.py --workdir=/mnt/shared/runs/psld_cifar
#
# The same line again copies and installs anew and resumes the run. Environment:
#   TPU_NAME   name of the TPU VM (required; made with `gcloud compute tpus tpu-vm create`)
#   ZONE       its zone (required)
#   PROJECT    its project (default: gcloud's)
#   PYTHON     interpreter on the workers, 3.11 or newer (default: python3.11, installed by apt where it is missing)
#   FOLDER     folder in the home of the workers for tree and environment (default: sgmjax)
#   DRY_RUN    set to 1 to print the commands instead
# The work folder must be one that all workers see (an NFS or Cloud Storage mount): checkpoints are written by all of them.
set -euo pipefail

: "${TPU_NAME:?set TPU_NAME to the name of the TPU VM}" "${ZONE:?set ZONE to the zone of the TPU VM}"
python=${PYTHON:-python3.11}
folder=${FOLDER:-sgmjax}
case " $* " in
    *" --workdir"*) ;;
    *) echo "add --workdir=FOLDER, one that all workers see" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=("--zone=$ZONE" --worker=all)
[ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")

run() { if [ "${DRY_RUN:-0}" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:sgmjax.tar.gz" "${where[@]}"

arguments=$(printf '%q ' "$@")
run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --command="set -e
command -v $python > /dev/null || { sudo apt-get update -q; sudo apt-get install -qy $python $python-venv; }
mkdir -p $folder && tar -C $folder -xzf sgmjax.tar.gz && cd $folder
[ -x .venv/bin/python ] || $python -m venv .venv
.venv/bin/pip install -q -e '.[tpu]'
SGMJAX_DISTRIBUTED=1 .venv/bin/python -m sgmjax.train $arguments"
