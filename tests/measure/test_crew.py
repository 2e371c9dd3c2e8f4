from __future__ import annotations

from pathlib import Path

import pytest

from uphold.measure.crew import Crew, Queue, crew, model_bytes
from uphold.measure.executors import Unit

GB = 1 << 30


@pytest.mark.parametrize(
    ("nodes", "spread", "model", "expected"),
    [
        # A laptop: one core each while the model fits twice, else one worker with both cores.
        ([{"CPU": 2.0, "memory": 8.0 * GB}], False, GB, Crew(2, 1, 0)),
        ([{"CPU": 2.0, "memory": 8.0 * GB}], False, 4 * GB, Crew(1, 2, 0)),
        ([{"CPU": 2.0, "memory": 8.0 * GB}], False, 40 * GB, Crew(1, 2, 0)),
        ([{"CPU": 1.0, "memory": 8.0 * GB}], False, GB, Crew(1, 1, 0)),
        # Machines: seven of these models fit into each, so that nine or ten cores go to each.
        ([{"CPU": 64.0, "memory": 240.0 * GB}] * 2, False, 32 * GB, Crew(12, 10, 0)),
        ([{"CPU": 1.0, "memory": 8.0 * GB}] * 3, False, GB, Crew(3, 1, 0)),
        # Whatever memory and cores they have: one for every GPU, wherever there is one.
        ([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 8.0}, {"GPU": 4.0}], False, 40 * GB, Crew(12, 0, 1)),
        ([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 8.0}, {"GPU": 4.0}], True, 40 * GB, Crew(3, 0, 4)),
        # A machine that only leads the cluster; then nothing fits, which Ray says when a worker is asked for.
        ([{"CPU": 0.0, "memory": 8.0 * GB}, {"CPU": 4.0, "memory": 8.0 * GB}], False, GB, Crew(4, 1, 0)),
        ([{"CPU": 0.0, "memory": 8.0 * GB}], False, 0, Crew(1, 1, 0)),
    ],
)
def test_how_many_workers_a_cluster_gets(
    nodes: list[dict[str, float]], spread: bool, model: int, expected: Crew
) -> None:
    assert crew(nodes, spread, model) == expected


def test_the_size_of_a_model_is_that_of_its_files_as_float32(model_v1: Path, tmp_path: Path) -> None:
    weights = sum(path.stat().st_size for path in model_v1.glob("*.safetensors"))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"x" * 100)

    assert model_bytes(model_v1) == 2 * weights
    assert model_bytes(gguf) == 800
    assert model_bytes("http://localhost:1/v1#model") == 0


def test_a_worker_stays_with_its_model_and_then_helps_where_most_is_left() -> None:
    # Jobs 0 and 1 are of one model, as the old model and its noise floor are.
    units = [Unit(job, part) for job in range(3) for part in range(3)]
    queue = Queue(["old", "old", "new"], units)

    assert queue.take("", []) == Unit(0, 0)  # six units of old, three of new
    assert queue.take("", ["old"]) == Unit(2, 0)  # five for one worker, three for none: 5 / 2 < 3 / 1
    assert [queue.take("old", ["new"]) for _ in range(5)] == [Unit(0, 1), Unit(0, 2), *units[3:6]]
    assert queue.take("old", ["new"]) == Unit(2, 1)

    queue.give_back(Unit(0, 0))
    assert len(queue) == 2
    assert queue.take("new", ["new"]) == Unit(2, 2)
    assert queue.take("new", ["new"]) == Unit(0, 0)
    assert not queue
