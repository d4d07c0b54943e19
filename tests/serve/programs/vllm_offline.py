"""Uses the vLLM family as `truthgpt infer` does: `vllm_offline.py CONFIG_JSON INPUTS_JSON`.

Prints one JSON object with what `infer` and `stream` gave.
"""

from __future__ import annotations

import json
import sys

from deployments.vllm.deployment import VllmModel
from truthgpt_serve.config import load_model_config


def main() -> None:
    config, inputs = map(json.loads, sys.argv[1:])
    model = VllmModel()
    model.load(load_model_config(config).to_cfg())
    try:
        answer = model.infer(inputs)
        deltas = list(model.stream(inputs))
        model.check_health()
        first = None
        for delta in model.stream({**inputs, "max_new_tokens": 500}):
            first = delta
            break
    finally:
        model.close()
        model.close()
    print(json.dumps({"answer": answer, "deltas": deltas, "first": first}))


if __name__ == "__main__":
    main()
