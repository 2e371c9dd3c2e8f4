"""Logs of inspect_ai for tests: written by inspect itself, and by hand in its layout."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ZSTD = 93


def spec(**changes: Any) -> dict[str, Any]:
    """The part `eval` of a header."""
    return {
        "eval_id": "e",
        "run_id": "r",
        "created": "2026-01-02T03:04:05+00:00",
        "task": "sums",
        "task_id": "t",
        "task_version": 2,
        "task_args": {},
        "dataset": {"name": "sums", "samples": 3, "sample_ids": ["a", "b/ c", 3], "shuffled": False},
        "model": "mockllm/old",
        "model_generate_config": {},
        "model_args": {},
        "config": {"epochs": 1},
        "packages": {"inspect_ai": "0.3.285"},
        "scorers": [{"name": "match", "options": {"location": "end"}, "metrics": [], "metadata": {}}],
    } | changes


def header(**changes: Any) -> dict[str, Any]:
    """What stands in `header.json`; `changes` are of the part `eval`."""
    plan = {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": {"temperature": 0.0}}
    return {"version": 2, "status": "success", "eval": spec(**changes), "plan": plan, "stats": {}}


def sample(name: str | int = "a", value: Any = "C", **changes: Any) -> dict[str, Any]:
    """A sample that the scorer `match` scored."""
    message = {"id": f"random {name}", "role": "assistant", "content": f"say {name}", "source": "generate"}
    return {
        "id": name,
        "epoch": 1,
        "input": f"question {name}",
        "target": "4",
        "messages": [],
        "output": {
            "model": "mockllm/old",
            "choices": [{"message": message, "stop_reason": "stop"}],
            "completion": f"say {name}",
        },
        "scores": {"match": {"value": value, "answer": f"answer {name}"}},
        "metadata": {"kind": "sum"},
        "store": {},
        "model_usage": {"mockllm/old": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}},
    } | changes


def members(samples: list[dict[str, Any]], head: dict[str, Any] | None = None) -> dict[str, bytes]:
    """The members of an `.eval` file by name."""
    parts = {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in samples}
    first = header() if head is None else head
    start = {"version": 2, "eval": first["eval"], "plan": first["plan"]}
    return {
        name: json.dumps(value).encode()
        for name, value in {"_journal/start.json": start, **parts, "header.json": first}.items()
    }


def write_eval(path: Path, parts: Mapping[str, bytes], method: int = ZSTD, **lies: int) -> Path:
    """A zip file as inspect lays it out; `lies` replace `size` or `crc` in the directory of every member."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    body, directory = b"", b""
    for name, data in parts.items():
        packed = data
        if method == ZSTD:
            packed = pa.compress(data, codec="zstd", asbytes=True)
        elif method == 8:
            packer = zlib.compressobj(wbits=-15)
            packed = packer.compress(data) + packer.flush()
        crc, size = lies.get("crc", zlib.crc32(data)), lies.get("size", len(data))
        fields = (20, lies.get("flags", 0), method, 0, 33, crc, len(packed), size, len(name.encode()), 0)
        directory += struct.pack("<4sH", b"PK\x01\x02", 20) + struct.pack("<HHHHHLLLHH", *fields)
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + struct.pack("<HHHHHLLLHH", *fields) + name.encode() + packed
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, len(parts), len(parts), len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def write_json_log(path: Path, samples: list[dict[str, Any]], head: dict[str, Any] | None = None) -> Path:
    """The whole log as one JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**(header() if head is None else head), "samples": samples}))
    return path
