"""Arrow tables in the layout that LeRobot and pandas expect of a v3.0 set."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from moteur.data.lerobot.info import Feature


def frame_table(columns: Mapping[str, Sequence[Any]], features: Mapping[str, Feature]) -> pa.Table:
    """One row per frame: scalars for shape `[1]`, fixed-size lists for vectors, PNG bytes for pictures.

    Args:
        columns: Values per frame, for every feature that is not a video.
        features: The set's features.
    """
    stored = {key: feature for key, feature in features.items() if feature.dtype != "video"}
    fields = [pa.field(key, _arrow_type(feature)) for key, feature in stored.items()]
    described = {key: _hub_feature(feature) for key, feature in stored.items()}
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})
    arrays = [
        pa.array([_plain(value, feature) for value in columns[key]], type=_arrow_type(feature))
        for key, feature in stored.items()
    ]
    return pa.table(arrays, schema=schema)


def task_table(tasks: Sequence[str]) -> pa.Table:
    """Task texts by number; the text is the pandas index, which LeRobot looks it up by."""
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
        "columns": [column | {"metadata": None}, index | {"metadata": None}],
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table([list(range(len(tasks))), list(tasks)], schema=schema)


def png_bytes(picture: np.ndarray) -> bytes:
    """Encode a picture (height, width, 3) without loss."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _plain(value: Any, feature: Feature) -> Any:  # noqa: ANN401  # whatever a cell may hold
    if feature.dtype == "image":
        return {"bytes": value, "path": None}
    if isinstance(value, np.ndarray):
        return value.reshape(()).item() if feature.shape == (1,) else value.tolist()
    return value


def _arrow_type(feature: Feature) -> pa.DataType:
    if feature.dtype == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if feature.dtype == "string":
        return pa.string()
    kind = pa.from_numpy_dtype(np.dtype(feature.dtype))
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind


def _hub_feature(feature: Feature) -> dict[str, Any]:
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.dtype == "string" or feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "List"}
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}
