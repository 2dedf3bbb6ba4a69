"""SAM 2's memory entries in batches of runs."""

import torch


def memory_of(step: dict) -> dict:
    """What a later step needs of the output of one."""
    return {k: step[k] for k in ("maskmem_features", "maskmem_pos_enc", "obj_ptr")}


def stack(entries: list[dict]) -> dict:
    """One batched memory entry."""
    position = [torch.cat([e["maskmem_pos_enc"][n] for e in entries]) for n in range(len(entries[0]["maskmem_pos_enc"]))]
    return {
        "maskmem_features": torch.cat([e["maskmem_features"] for e in entries]),
        "maskmem_pos_enc": position,
        "obj_ptr": torch.cat([e["obj_ptr"] for e in entries]),
    }


def rows_of(memories: dict, rows: list[int]) -> dict:
    """Some runs of all memory entries."""
    def cut(e):
        return {
            "maskmem_features": e["maskmem_features"][rows],
            "maskmem_pos_enc": [p[rows] for p in e["maskmem_pos_enc"]],
            "obj_ptr": e["obj_ptr"][rows],
        }

    return {kind: {d: cut(e) for d, e in entries.items()} for kind, entries in memories.items()}
