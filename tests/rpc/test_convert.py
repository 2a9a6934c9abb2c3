"""A plan travels in parts and arrives as the document that it was, whatever its size."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from safegraft.rpc.convert import plan_parts
from safegraft.rpc.resources import plan_document
from safegraft.v1 import plan_pb2

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
counts = st.integers(0, 2**62)
tensor_inputs = st.fixed_dictionaries({"model": names, "tensor": names})
tensors = st.fixed_dictionaries(
    {
        "name": names,
        "action": st.sampled_from(["merge", "copy"]),
        "method": st.none() | names,
        "dtype": st.sampled_from(["BF16", "F32"]),
        "shape": st.lists(counts, max_size=4),
        "inputs": st.lists(tensor_inputs, max_size=4),
        "base": st.none() | tensor_inputs,
    },
    optional={"rows_merged": counts, "note": names},
)
plans = st.fixed_dictionaries(
    {
        "digest": names,
        "host_model": names,
        "models": st.lists(st.fixed_dictionaries({"reference": names, "name": names}), max_size=4),
        "files": st.lists(st.fixed_dictionaries({"name": names, "size_bytes": counts}), max_size=5),
        "tensors": st.lists(tensors, max_size=8),
        "warnings": st.lists(names, max_size=3),
        "cost": st.fixed_dictionaries(
            {
                "bytes_read": counts,
                "bytes_written": counts,
                "peak_memory_bytes": counts,
                "merged_elements": counts,
                "seconds": st.floats(0, 1e9),
            }
        ),
    }
)


def arrived(parts: list[plan_pb2.Plan]) -> dict[str, Any]:
    whole = plan_pb2.Plan()
    for part in parts:
        whole.MergeFrom(plan_pb2.Plan.FromString(part.SerializeToString()))
    return plan_document(whole)


@given(plans)
def test_a_plan_arrives_as_it_was(document: dict[str, Any]):
    assert arrived(list(plan_parts(document))) == document


def test_the_plan_of_a_giant_fits_the_message_limit():
    """94 layers of 128 experts, from four models, with long names."""
    source = [{"model": f"organisation/a-model-with-a-long-name-{n}", "tensor": "x" * 80} for n in range(4)]
    tensor = {
        "action": "merge",
        "method": "linear",
        "dtype": "BF16",
        "shape": [4096, 1536],
        "inputs": source,
        "base": None,
    }
    document = {
        "digest": "d" * 64,
        "host_model": "host",
        "models": [],
        "files": [{"name": f"model-{n:05}.safetensors", "size_bytes": 5 * 10**9} for n in range(100)],
        "tensors": [{"name": f"model.layers.{n // 384}.mlp.experts.{n % 384}.weight", **tensor} for n in range(36_096)],
        "warnings": [f"warning {n}" for n in range(1000)],
        "cost": {"bytes_read": 1, "bytes_written": 1, "peak_memory_bytes": 1, "merged_elements": 1, "seconds": 1.5},
    }
    parts = list(plan_parts(document))
    assert len(parts) > 10
    assert max(part.ByteSize() for part in parts) < 2 << 20
    assert arrived(parts) == document
