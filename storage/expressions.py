"""SQL expressions as trees: what may be in one, what it reads, and what it implies.

The tree is the one of DuckDB's ``json_serialize_sql``, which binds nothing. Whatever is not named
here is refused: subqueries, windows, aggregates, lambdas, functions that grow what they are given.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from storage.errors import InvalidDataError
from storage.schemas import Dataset
from storage.selection import Bound, Comparison

FIELD: Final = "where"
"""The field of a ticket that errors name."""

Node = Mapping[str, Any]

FUNCTIONS: Final = frozenset(
    {
        *("+", "-", "*", "/", "//", "%", "**", "^", "&", "|", "<<", ">>", "~"),
        *("~~", "!~~", "~~*", "!~~*", "like_escape", "ilike_escape"),
        *("abs", "ceil", "ceiling", "floor", "round", "trunc", "sign", "sqrt", "ln", "log", "exp"),
        *("pow", "power", "mod", "greatest", "least", "isnan", "isfinite", "isinf", "xor"),
        *("lower", "upper", "length", "strlen", "trim", "ltrim", "rtrim", "substr", "substring"),
        *("starts_with", "ends_with", "prefix", "suffix", "contains", "left", "right", "nullif"),
        *("year", "month", "day", "hour", "minute", "second", "millisecond", "microsecond"),
        *("dayofweek", "isodow", "dayofyear", "week", "quarter", "date_part", "datepart"),
        *("date_trunc", "datetrunc", "epoch", "epoch_ms", "epoch_us", "epoch_ns", "make_timestamp"),
        *("to_days", "to_hours", "to_minutes", "to_seconds", "to_milliseconds"),
        *("len", "array_length", "list_contains", "list_has", "list_value", "row"),
    }
)
"""Functions of values alone, none of whose results is much larger than what it was given."""
OPERATORS: Final = frozenset(
    {
        *("OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE"),
        *("COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_NULLIF"),
        *("ARRAY_EXTRACT", "STRUCT_EXTRACT"),
    }
)
TYPES: Final = frozenset(
    {
        *(
            "BOOLEAN",
            "TINYINT",
            "SMALLINT",
            "INTEGER",
            "BIGINT",
            "HUGEINT",
            "UTINYINT",
            "USMALLINT",
        ),
        *("UINTEGER", "UBIGINT", "FLOAT", "DOUBLE", "DECIMAL", "VARCHAR", "DATE", "TIME"),
        *("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ", "INTERVAL", "INT", "TEXT"),
    }
)
_CHILDREN: Final[Mapping[str, tuple[str, ...]]] = {
    "CONJUNCTION": ("children",),
    "COMPARISON": ("left", "right"),
    "BETWEEN": ("input", "lower", "upper"),
    "OPERATOR": ("children",),
    "CAST": ("child",),
    "COLUMN_REF": (),
    "CONSTANT": (),
}
"""Where the classes of nodes that may be used keep their operands."""

_COMPARISONS: Final = {
    "COMPARE_LESSTHAN": Comparison.BELOW,
    "COMPARE_LESSTHANOREQUALTO": Comparison.AT_MOST,
    "COMPARE_EQUAL": Comparison.EQUAL,
    "COMPARE_GREATERTHANOREQUALTO": Comparison.AT_LEAST,
    "COMPARE_GREATERTHAN": Comparison.ABOVE,
}
_TURNED: Final = {
    Comparison.BELOW: Comparison.ABOVE,
    Comparison.AT_MOST: Comparison.AT_LEAST,
    Comparison.EQUAL: Comparison.EQUAL,
    Comparison.AT_LEAST: Comparison.AT_MOST,
    Comparison.ABOVE: Comparison.BELOW,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A column compared with a constant, which every row wanted fulfils.

    ``value`` is the constant as it was written, ``is_text`` whether in quotes.
    """

    column: str
    comparison: Comparison
    value: str
    is_text: bool


def columns_read(tree: Node, dataset: Dataset) -> tuple[str, ...]:
    """Return the columns that an expression reads, having checked all of it.

    Raises:
        InvalidDataError: Something is in it that may not be.
    """
    by_name = {name.lower(): name for name in dataset.schema.names}
    read: dict[str, None] = {}
    left = [tree]
    while left:
        node = left.pop()
        if node["class"] == "COLUMN_REF":
            *qualified, name = node["column_names"]
            if qualified or name.lower() not in by_name:
                known = ", ".join(dataset.schema.names)
                raise _refused(f"{dataset.name} has no column {name!r}; its columns are {known}")
            read[by_name[name.lower()]] = None
        left.extend(_operands(node))
    return tuple(read)


def conditions(tree: Node) -> list[Condition]:
    """Return the comparisons that an expression joins by AND, for readers to skip rows by."""
    found: list[Condition] = []
    left = [tree]
    while left:
        node = left.pop()
        if node["type"] == "CONJUNCTION_AND":
            left.extend(node["children"])
        elif node["class"] == "COMPARISON" and node["type"] in _COMPARISONS:
            comparison = _COMPARISONS[node["type"]]
            found.extend(_condition(node["left"], comparison, node["right"]))
            found.extend(_condition(node["right"], _TURNED[comparison], node["left"]))
        elif node["class"] == "BETWEEN" and node["type"] == "COMPARE_BETWEEN":
            found.extend(_condition(node["input"], Comparison.AT_LEAST, node["lower"]))
            found.extend(_condition(node["input"], Comparison.AT_MOST, node["upper"]))
    return found


def bound_of(condition: Condition, dataset: Dataset) -> Bound | None:
    """Return a condition on a number as readers take it, None for any other."""
    data_type = dataset.schema.field(condition.column).type
    is_number = pa.types.is_floating(data_type) or pa.types.is_integer(data_type)
    if condition.is_text or not is_number:
        return None
    try:
        value = float(condition.value)
    except ValueError:
        return None
    # Beyond that, neighbouring integers are one float.
    exact = pa.types.is_floating(data_type) or abs(value) < 1 << 53
    return Bound(condition.column, condition.comparison, value) if exact else None


def _condition(column: Node, comparison: Comparison, constant: Node) -> Iterator[Condition]:
    if constant["class"] == "CAST" and "TIMESTAMP" in constant["type_expr"]["type_name"]:
        constant = constant["child"]
    if column["class"] == "COLUMN_REF" and constant["class"] == "CONSTANT":
        literal = constant.get("literal", {})
        if isinstance(literal.get("text"), str):
            name, is_text = column["column_names"][-1].lower(), literal["kind"] == "STRING"
            yield Condition(name, comparison, literal["text"], is_text)


def _operands(node: Node) -> list[Node]:
    """Return what a node applies to.

    Raises:
        InvalidDataError: The node may not be used.
    """
    kind, what = node["class"], node["type"]
    if kind == "FUNCTION":
        return _arguments(node)
    if kind == "CASE":
        checks = [
            check[part] for check in node["case_checks"] for part in ("when_expr", "then_expr")
        ]
        return [*checks, node["else_expr"]]
    if kind not in _CHILDREN or (kind == "OPERATOR" and what not in OPERATORS):
        raise _refused(f"{what.replace('_', ' ').lower()} may not be used")
    if kind == "CAST" and node["type_expr"]["type_name"].upper() not in TYPES:
        raise _refused(f"a cast to {node['type_expr']['type_name']} may not be used")
    found = (node[name] for name in _CHILDREN[kind])
    return [one for part in found for one in (part if isinstance(part, list) else [part])]


def _arguments(node: Node) -> list[Node]:
    name = node["function_name"].lower()
    plain = not (node["filter"] or node["distinct"] or node["order_bys"]["orders"])
    if name not in FUNCTIONS or not plain or node["schema"] or node["catalog"]:
        raise _refused(f"the function {name!r} may not be used")
    return [argument["expression"] for argument in node["arguments"]]


def _refused(why: str) -> InvalidDataError:
    return InvalidDataError(f"{FIELD}: {why}", field=FIELD)
