"""Stack SAM 2's memory entries into batches with one row for each pass."""

import torch


def memory_entry(output: dict) -> dict:
    """Return the part of a step's output that later steps need: memory features, their position codes and the object pointer."""
    return {k: output[k] for k in ("maskmem_features", "maskmem_pos_enc", "obj_ptr")}


def stack_entries(entries: list[dict]) -> dict:
    """Return one memory entry whose batch holds all `entries`."""
    levels = range(len(entries[0]["maskmem_pos_enc"]))
    return {
        "maskmem_features": torch.cat([e["maskmem_features"] for e in entries]),
        "maskmem_pos_enc": [torch.cat([e["maskmem_pos_enc"][n] for e in entries]) for n in levels],
        "obj_ptr": torch.cat([e["obj_ptr"] for e in entries]),
    }


def select_rows(memories: dict, rows: list[int]) -> dict:
    """Return the memories of only some passes.

    Args:
        memories: SAM 2's output dictionary, {"cond_frame_outputs": {time: entry}, "non_cond_frame_outputs": {time: entry}}.
        rows: Indices into the batch.
    """
    def select(entry):
        return {
            "maskmem_features": entry["maskmem_features"][rows],
            "maskmem_pos_enc": [p[rows] for p in entry["maskmem_pos_enc"]],
            "obj_ptr": entry["obj_ptr"][rows],
        }

    return {kind: {time: select(e) for time, e in entries.items()} for kind, entries in memories.items()}
