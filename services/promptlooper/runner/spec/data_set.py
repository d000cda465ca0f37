"""`inputs` of an experiment file: rows inline or from a data file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator

from promptlooper.document import Document, NotUtf8, Path, decoded, documents_of_lines, read_document
from promptlooper.experiment import InputRow
from promptlooper.jsonvalue import Json
from promptlooper.runner.spec.cells import CONVERTERS, matches
from promptlooper.runner.spec.files import MAX_DATA_BYTES, FileRefused
from promptlooper.runner.spec.forms import Form
from promptlooper.runner.spec.problems import FilePosition, choices, nearest
from promptlooper.runner.spec.rows import LATER, SPECIAL, Rows, row_of, sampled, with_ids
from promptlooper.runner.spec.values import is_integer, noun

MAX_PROBLEMS = 20  # of one set of rows; the rest is counted
_KEYS = ("file", "types", "where", "sample", "seed", "limit")
_ENDINGS = (".csv", ".jsonl", ".json", ".yaml", ".yml")
_MAX_CELL = 16 << 20


class _RowProblems:
    def __init__(self, form: Form, position: Callable[[int], FilePosition]) -> None:
        self._form = form
        self.position = position
        self.count = 0

    def add(self, place: int, message: str) -> None:
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self._form.notes.add_at(self.position(place), message)

    def finish(self) -> None:
        if self.count > MAX_PROBLEMS:
            more = self.count - MAX_PROBLEMS
            self._form.notes.add_at(FilePosition(self.position(1).file), f"{more} more rows have problems")


class RowReader:
    """Reads `inputs`; None where there are none that could be used."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._notes = form.notes

    def rows(self, value: Json) -> Rows | None:
        path: Path = ("inputs",)
        if isinstance(value, list):
            if not value:
                self._notes.add(path, "'inputs' must not be empty; leave it out for one run without input")
                return None
            problems = _RowProblems(self._form, lambda place: self._notes.position((*path, place)))
            return self._finished(enumerate(value), problems)
        if isinstance(value, dict) and "file" in value:
            return self._data_set(path, value)
        self._notes.add(path, f"'inputs' must be a list of rows or {{file: path}}, not {noun(value)}")
        return None

    def _finished(self, values: Iterable[tuple[int, Json]], problems: _RowProblems) -> Rows | None:
        rows: list[InputRow] = []
        places: list[int] = []
        for place, value in values:
            try:
                rows.append(row_of(value))
                places.append(place)
            except ValueError as error:
                problems.add(place, str(error))
        if not problems.count:
            try:
                rows = with_ids(rows)
            except ValueError as error:
                ids = [row.input_id for row in rows]
                second = next(i for i, name in enumerate(ids) if name and name in ids[:i])
                problems.add(places[second], str(error))
        problems.finish()
        return None if problems.count else Rows(tuple(rows), tuple(places), problems.position)

    def _data_set(self, path: Path, settings: dict[str, Json]) -> Rows | None:
        self._notes.check_keys(path, settings, _KEYS, (), "'inputs'")
        types = self._form.mapping((*path, "types"), settings.get("types") or {}, "types") or {}
        where = self._form.mapping((*path, "where"), settings.get("where") or {}, "where") or {}
        chosen = {}
        for key, least in (("sample", 1), ("limit", 1), ("seed", None)):
            number = settings.get(key)
            if number is not None:
                if not is_integer(number) or (least is not None and number < least):  # type: ignore[operator]
                    self._notes.add((*path, key), f"{key!r} must be an integer of at least 1, not {noun(number)}")
                else:
                    chosen[key] = int(number)  # type: ignore[arg-type]
        name = settings["file"]
        if not isinstance(name, str):
            self._notes.add((*path, "file"), f"the name of a file must be text, not {noun(name)}")
            return None
        if not name.endswith(_ENDINGS):
            self._notes.add((*path, "file"), f"the data file {name!r} must end in {choices(_ENDINGS)}")
            return None
        try:
            text = decoded(self._form.folder.read(name, MAX_DATA_BYTES))
        except FileRefused as error:
            self._notes.add((*path, "file"), str(error))
            return None
        except NotUtf8 as error:
            self._notes.add_at(FilePosition(self._form.folder.shown(name), error.line), str(error))
            return None
        shown = self._form.folder.shown(name)
        problems = _RowProblems(self._form, lambda place: FilePosition(shown, place))
        if types and not name.endswith(".csv"):
            self._notes.add((*path, "types"), f"'types' is for .csv files; {name!r} has types of its own")
        if name.endswith(".csv"):
            found = self._finished(self._csv_rows((*path, "types"), text, types, problems), problems)
        elif name.endswith(".jsonl"):
            found = self._finished(_lines(text, problems), problems)
        else:
            found = self._of_document(read_document(text, json=name.endswith(".json")), shown)
        if found is None:
            return None
        if not found.rows:
            self._notes.add((*path, "file"), f"the data file {name!r} has no rows")
            return None
        return self._selected(path, found, where, chosen)

    def _of_document(self, document: Document, shown: str) -> Rows | None:
        for line, message in document.problems:
            self._notes.add_at(FilePosition(shown, line), message)
        if document.problems:
            return None
        if not isinstance(document.value, list):
            message = f"a data file must be a list of rows, not {noun(document.value)}"
            self._notes.add_at(FilePosition(shown, 1), message)
            return None
        problems = _RowProblems(self._form, lambda index: FilePosition(shown, document.line((index,))))
        return self._finished(enumerate(document.value), problems)

    def _csv_rows(
        self, path: Path, text: str, types: dict[str, Json], problems: _RowProblems
    ) -> Iterator[tuple[int, Json]]:
        csv.field_size_limit(_MAX_CELL)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = next(reader, [])
            bad = _header_problem(header)
            if bad is not None:
                problems.add(1, bad)
                return
            converters: list[tuple[str, Callable[[str], Json]]] = []
            for column, kind in types.items():
                if column not in header:
                    self._notes.add((*path, column), f"there is no column {column!r}{nearest(column, header)}")
                elif not isinstance(kind, str) or kind not in CONVERTERS:
                    near = nearest(kind, CONVERTERS) if isinstance(kind, str) else ""
                    message = f"the type of column {column!r} must be {choices(CONVERTERS)}, not {noun(kind)}{near}"
                    self._notes.add((*path, column), message)
                else:
                    converters.append((column, CONVERTERS[kind]))
            width, line = len(header), reader.line_num + 1
            for cells in reader:
                place, line = line, reader.line_num + 1
                if len(cells) != width:
                    if cells:
                        problems.add(place, f"this row has {len(cells)} cells, the header has {width}")
                    continue
                row: dict[str, Json] = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                try:
                    for column, convert in converters:
                        if row[column] is not None:
                            row[column] = convert(row[column])  # type: ignore[arg-type]
                except ValueError as error:
                    problems.add(place, f"column {column!r}: {error}")
                    continue
                yield place, row
        except csv.Error as error:
            problems.add(reader.line_num, f"this is not CSV: {error}")

    def _selected(self, path: Path, found: Rows, where: dict[str, Json], chosen: dict[str, int]) -> Rows | None:
        keys = {key for row in found.rows if isinstance(row.value, dict) for key in row.value} | {"expected"}
        for key in where:
            if key not in keys:
                self._notes.add((*path, "where", key), f"no row has {key!r}{nearest(key, keys)}")
        if any(key not in keys for key in where):
            return None
        indices = [
            i for i, row in enumerate(found.rows) if all(_matches(row, key, want) for key, want in where.items())
        ]
        if not indices:
            self._notes.add((*path, "where"), "'where' lets no row through")
            return None
        if "sample" in chosen:
            indices = [indices[i] for i in sampled(len(indices), chosen["sample"], chosen.get("seed", 0))]
        return found.kept(indices[: chosen.get("limit")])


def _lines(text: str, problems: _RowProblems) -> Iterator[tuple[int, Json]]:
    for line, value, wrong in documents_of_lines(text):
        if wrong is None:
            yield line, value
        else:
            problems.add(line, wrong)


def _header_problem(header: list[str]) -> str | None:
    if not header:
        return "the file is empty; its first line must name the columns"
    for index, name in enumerate(header):
        if not name.strip():
            return f"column {index + 1} has no name"
        if name in header[:index]:
            return f"the column {name!r} is there twice"
        if name in LATER:
            return f"the column {name!r} is not available yet"
        if name[:1] == "_" and name not in SPECIAL:
            return f"{name!r} is not a column that begins with _{nearest(name, SPECIAL[1:])}"
    return None


def _matches(row: InputRow, key: str, wanted: Json) -> bool:
    if key == "expected":
        value = row.expected
    elif isinstance(row.value, dict) and key in row.value:
        value = row.value[key]
    else:
        return False
    return matches(value, wanted)
