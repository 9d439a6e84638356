"""Writes the Parquet files of this folder as Hugging Face's datasets do (needs pyarrow): python make.py"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent


def messages(*contents):
    roles = ("user", "assistant")
    return [{"content": text, "role": roles[i % 2]} for i, text in enumerate(contents)]


def write(name, rows, schema=None, **options):
    pq.write_table(pa.Table.from_pylist(rows, schema), HERE / f"{name}.parquet", **options)


turns = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
scored = [
    {
        "chosen": messages("What is the tallest tree?", "The coast redwood."),
        "rejected": messages("What is the tallest tree?", "A shrub."),
        "chosen_score": 9.5,
        "rejected_score": 2.0,
    },
    {
        "chosen": messages("Hello.", "Hi! How are you?", "Fine. Name a colour.", "Green."),
        "rejected": messages("Hello.", "Hi! How are you?", "Fine. Name a colour.", "No."),
        "chosen_score": None,
        "rejected_score": None,
    },
    {
        "chosen": messages("Count to three.", "One, two, three."),
        "rejected": messages("Count to three.", "Three."),
        "chosen_score": 4.0,
        "rejected_score": 4.5,
    },
]
score = pa.float64()
layout = pa.schema(
    [("rejected", turns), ("chosen", turns), ("rejected_score", score), ("chosen_score", score)]
)
write("preference_700k", scored, layout, row_group_size=2)
for codec in ("zstd", "lz4", "brotli"):
    write(codec, scored, layout, row_group_size=2, compression=codec)

binarized = [
    {
        "prompt": row["chosen"][0]["content"],
        "prompt_id": f"{i:064x}",
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "messages": row["chosen"],
        "score_chosen": row["chosen_score"] or 7.0,
        "score_rejected": row["rejected_score"] or 6.0,
    }
    for i, row in enumerate(scored)
]
write("ultrafeedback_binarized", binarized, compression="gzip", use_dictionary=False)

implicit = [
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"chosen": "The sun is hot.", "rejected": "The sun is in the sea."},
]
write("trl_implicit", implicit, compression=None)
write("other_columns", [{"text": "a", "label": 1}], compression=None)
