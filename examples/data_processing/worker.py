"""The guide's data processing pipeline: CSV in; clean, transform, aggregate; Parquet out.

    jobapi worker worker:worker --workspace 1

The job's ``metadata`` names the ``input_file`` in the folder ``DATA_FOLDER`` (by
default this one), the ``operations`` in order, and the ``output_format``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from jobapi.client import Permanent, Task, Worker

FOLDER = Path(os.environ.get("DATA_FOLDER", Path(__file__).parent)).resolve()

worker = Worker()


def clean(table: pa.Table) -> pa.Table:
    """Drop rows with missing values, and duplicates."""
    table = table.drop_null()
    return table.group_by(table.column_names, use_threads=False).aggregate([])


def transform(table: pa.Table) -> pa.Table:
    """Add the amount of each row."""
    return table.append_column("amount", pc.multiply(table["quantity"], table["price"]))


def aggregate(table: pa.Table) -> pa.Table:
    """Sum by region."""
    value = "amount" if "amount" in table.column_names else "quantity"
    grouped = table.group_by("region").aggregate([(value, "sum"), (value, "count")])
    return grouped.sort_by("region")


OPERATIONS = {"clean": clean, "transform": transform, "aggregate": aggregate}


def wanted(metadata: dict[str, Any]) -> tuple[Path, list[str]]:
    """The input file and the operations. Raises ``Permanent`` for input that can never work."""
    source = (FOLDER / str(metadata.get("input_file", ""))).resolve()
    if FOLDER not in source.parents or not source.is_file():
        raise Permanent(f"The data folder has no input_file {metadata.get('input_file')!r}.")
    operations = metadata.get("operations", [])
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown:
        raise Permanent(f"Unknown operations {unknown}; use {', '.join(OPERATIONS)}.")
    if metadata.get("output_format", "parquet") != "parquet":
        raise Permanent("The only output_format is parquet.")
    return source, operations


@worker.task("data_processing")
def process(job: Task) -> dict[str, Any] | None:
    """Run one job and report its progress."""
    source, operations = wanted(job.metadata)
    size = max(source.stat().st_size, 1)
    batches = []
    read = 0
    with pyarrow.csv.open_csv(source) as reader:
        for batch in reader:
            if job.cancelled:
                return None
            batches.append(batch)
            read += batch.nbytes
            job.progress(min(50, 50 * read // size), f"Read {source.name}")
        table = pa.Table.from_batches(batches, reader.schema)
    rows = table.num_rows
    for number, name in enumerate(operations, 1):
        if job.cancelled:
            return None
        job.progress(
            50 + 40 * number // (len(operations) + 1), f"{name} ({number} of {len(operations)})"
        )
        table = OPERATIONS[name](table)
    target = source.with_suffix(".parquet")
    draft = target.with_suffix(f".{job.job_id}.draft")
    pyarrow.parquet.write_table(table, draft)
    # Atomic, because two attempts may write the same file.
    draft.replace(target)
    return {
        "output_file": target.name,
        "rows_read": rows,
        "rows_written": table.num_rows,
        "columns": table.column_names,
    }
