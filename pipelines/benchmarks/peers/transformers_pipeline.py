"""`pipeline("object-detection")` of `transformers` over photographs."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import pipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def label(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Detect on every file, and write what was found as one JSON line a file to `settings["output"]`."""
    torch.set_num_threads(settings["threads"])
    transformers.utils.logging.disable_progress_bar()
    detect = pipeline(
        "object-detection", model=settings["model"], device=settings["device"], dtype=DTYPES[settings["precision"]]
    )
    files = settings["files"]
    with Path(settings["output"]).open("w") as output:
        results = detect(files, threshold=settings["threshold"], batch_size=settings["batch"])
        output.writelines(
            json.dumps({"file": file, "found": found}) + "\n" for file, found in zip(files, results, strict=True)
        )
    return {"exit_code": 0}
