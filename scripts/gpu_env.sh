# Source this in the checkout on a GPU machine:  . scripts/gpu_env.sh
# With SGLang installed nothing else is needed. Without a network, SITE names the folder that scripts/offline_gpu made.
# Lays the package out under build/tree, with the metadata in which SGLang finds the plugin, and puts it on the import
# path, in front of $SITE.
python3 scripts/link_tree.py build/tree || return 1
export PYTHONPATH="$PWD/build/tree${SITE:+:$SITE}${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH="$CUDA_HOME/bin:$PATH"
if [ -n "${SITE:-}" ]; then
    # The pack has no assembler of triton's own, and cuDNN is the machine's, older than the one torch was built with.
    export TRITON_PTXAS_PATH="$CUDA_HOME/bin/ptxas" PYTORCH_SKIP_CUDNN_COMPATIBILITY_CHECK=1
    export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
fi
python3 - <<'PYTHON' || return 1
import sys
from importlib.metadata import entry_points

if "star_kv" not in entry_points(group="sglang.srt.plugins").names:
    sys.exit("SGLang would not find the plugin star_kv: no build/tree/*.dist-info on PYTHONPATH")
PYTHON
