"""Merging works in chunks: no method needs memory of the size of a tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, COLUMNS, CHUNK = 2500, 2000, 1 << 15
TENSOR = ROWS * COLUMNS * 4 / 1e6
SCRIPT = f"""
import ctypes, json, threading, time
from pathlib import Path
import torch
from tests.merge.test_all_methods import CASES
from tests.merge.whole import WholeView, instance, settings
from uphold.merge.engine.counter import uniform

torch.set_num_threads(1)
torch.manual_seed(0)
base = torch.randn({ROWS}, {COLUMNS})
models = [base + 0.01 * torch.randn({ROWS}, {COLUMNS}) for _ in range(3)]
peak = 0

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

class View(WholeView):
    def uniform(self, model, start, count):
        return uniform(0, self.name, model, start, count)

def run(name, models, base, per_model, base_settings, options, size):
    method = instance(name)
    view = View(base, models, method.unit, size)
    chosen = settings(name, len(models), per_model, base_settings, options)
    prepared = method.prepare(view, chosen, method.survey(iter([(view, chosen)])))
    for chunk in view.chunks():
        method.combine(chunk, chosen, prepared)

threading.Thread(target=watch, daemon=True).start()
grown = {{}}
for case, (name, count, with_base, options) in CASES.items():
    options = dict(options)
    per_model = {{"weight": options.pop("weights")}} if "weights" in options else {{}}
    base_settings = options.pop("base_settings", {{}})
    size = {CHUNK} // {COLUMNS} if instance(name).unit == "row" else {CHUNK}
    given = (base if with_base else None, per_model, base_settings, options)
    small = (base[:20] if with_base else None, *given[1:])
    run(name, [one[:20] for one in models[:count]], *small, size)  # what torch loads on first use is not counted
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    peak = before = anonymous()
    run(name, models[:count], *given, size)
    grown[case] = peak - before
print(json.dumps(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_no_method_needs_the_memory_of_a_tensor():
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert {case: megabytes for case, megabytes in grown.items() if megabytes > TENSOR / 2} == {}
    assert max(grown.values()) > 0
