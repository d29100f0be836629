"""What W&B wrote offline, read as `wandb sync` reads it."""

import json
import struct


def messages(data):
    """The messages of a .wandb file: after 7 bytes a LevelDB log, blocks of 32 KiB, records whole or in parts."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too short for a header: padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def records(file):
    from wandb.proto import wandb_internal_pb2

    for data in messages(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def put(values, item):
    """An item of W&B's, {"a": {"b": 1}} of the nested key a, b."""
    *folders, last = item.nested_key or [item.key]
    for name in folders:
        values = values.setdefault(name, {})
    values[last] = json.loads(item.value_json)


def runs(folder):
    """The runs below a store's `wandb-offline`, by the time of their files; `folder` is where a run's files are."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime_ns):
        run = {"summary": {}, "config": {}, "history": {}, "tags": [], "folder": file.parent / "files"}
        for record in records(file):
            if record.HasField("run"):
                run |= {name: getattr(record.run, name) for name in ("run_id", "run_group", "job_type", "display_name")}
                run["tags"] = list(record.run.tags)
                run["config"] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            for item in record.summary.update:
                put(run["summary"], item)
            for item in record.history.item:
                put(run["history"], item)
        found.append(run)
    return found
