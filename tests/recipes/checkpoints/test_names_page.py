"""The table of names in the documentation says what the code does."""

import json
import re
from pathlib import Path

from moteur.recipes.checkpoints.released_names import released_name

PAGE = Path(__file__).parents[3] / "docs" / "recipes" / "weights.md"
ROW = re.compile(r"\| (?P<symbol>[^|]+) \| `(?P<ours>[\w.]+)` \| `(?P<theirs>[\w.…]+)` \| (?P<shape>\d[\d ×]*) \|")


def test_every_row_names_the_tensor_that_the_code_reads_at_its_released_shape(golden: Path) -> None:
    shapes = json.loads((golden / "released_shapes_3b.json").read_text())
    rows = [match.groupdict() for match in map(ROW.fullmatch, PAGE.read_text().splitlines()) if match]
    assert len(rows) >= 25
    for row in rows:
        theirs = row["theirs"].replace("…", "model.qwen3_vl_with_expert")
        for layer in ("0", "27"):
            name = theirs.replace(".N.", f".{layer}.")
            assert released_name(row["ours"].replace(".N.", f".{layer}."), "3B") == name
            assert [int(size) for size in row["shape"].split("×")] == shapes[name]
    groups = {row["ours"].split(".")[0] for row in rows} | {row["ours"].split(".")[2] for row in rows}
    assert groups >= {"backbone", "mot", "foresight", "action", "und", "gen", "act"}
