"""Which tables a module writes, read off its syntax tree and its SQL.

Values are followed through imports, aliases, variables, annotations and the return types of the code's own functions, without
regard to order. A write whose table cannot be told is one of `UNKNOWN`: nothing passes for being unclear.
"""

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shared.infra import tables

UNKNOWN = "UNKNOWN"
_CLASSES = {f"{tables.__name__}.{one.class_.__name__}": one for one in tables.Base.registry.mappers}
_TABLE_OF = {name: str(one.class_.__tablename__) for name, one in _CLASSES.items()}
COLUMNS = {_TABLE_OF[name]: frozenset(one.attrs.keys()) for name, one in _CLASSES.items()}
_VERBS = frozenset({"insert", "update", "delete"})
_BULK = frozenset({"bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings"})
_SESSION_VERBS = frozenset({"add", "add_all", "merge", "delete"}) | _BULK
_HOLE = "\0"  # where an f-string puts something in
_SQL = re.compile(
    r"\b(?:update|insert\s+into|delete\s+from|merge\s+into|truncate(?:\s+table)?|copy|(?:alter|drop)\s+table)"
    rf'\s+(?:only\s+|if\s+exists\s+)?(?:"?public"?\.)?"?({_HOLE}|[{{%]|\w+)',
    re.IGNORECASE,
)

_BINDING = (
    *(ast.arg, ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.AsyncFor),
    *(ast.comprehension, ast.withitem),
)

# What an expression may stand for: a dotted name, a table ("T:jobs"), or rows of one ("R:jobs").
Values = frozenset[str]
NOTHING: Values = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class Write:
    """One place that writes a table."""

    table: str
    line: int


def tables_in(sql: str) -> Iterator[str]:
    """Yield the tables that a piece of SQL writes."""
    for name in _SQL.findall(sql):
        if name in {_HOLE, "{", "%"}:
            yield UNKNOWN
        elif name.lower() in COLUMNS:
            yield name.lower()


def concerns_tables(source: str) -> bool:
    """Say whether a module can write a row at all: it names one, a session, the library or SQL."""
    return bool(re.search(r"Row\b|sqlalchemy|session|transaction", source) or _SQL.search(source))


def returned_rows(trees: Mapping[str, ast.Module]) -> dict[str, Values]:
    """Return the rows that functions return by their annotations, by the functions' dotted names."""
    found: dict[str, Values] = {}
    for module, tree in trees.items():
        scope = _Scope(module, _imported(tree, module), {})
        for owner, function in _functions(tree):
            found[".".join(filter(None, (module, owner, function.name)))] = scope.annotated(function.returns)
    return found


def writes(tree: ast.Module, module: str, returns: Mapping[str, Values] | None = None) -> list[Write]:
    """Return what a module writes. `returns` is what `returned_rows` found in all modules."""
    scope = _Scope(module, _imported(tree, module), returns or {})
    outside = [node for statement in tree.body for node in _outside_functions(statement)]
    scope.bind(outside)
    found = set(_writes(outside, scope))
    for owner, function in _functions(tree):
        nodes = list(ast.walk(function))
        found |= set(_writes(nodes, scope.within(owner, nodes)))
    return sorted(found)


def _functions(node: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the outermost functions with the class they are in; what stands within one belongs to it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield owner, child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _functions(child, child.name if isinstance(child, ast.ClassDef) else owner)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _imported(tree: ast.Module, module: str) -> dict[str, Values]:
    names: dict[str, Values] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                names[one.asname or one.name.split(".")[0]] = frozenset(
                    {one.name if one.asname else one.name.split(".")[0]}
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {one.asname or one.name: frozenset({f"{node.module}.{one.name}"}) for one in node.names}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.setdefault(node.name, frozenset({f"{module}.{node.name}"}))
    return names


@dataclass
class _Scope:
    """The names of a module or of one of its functions, and what they may stand for."""

    module: str
    names: Mapping[str, Values]
    returns: Mapping[str, Values]
    owner: str = ""
    bound: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def within(self, owner: str, nodes: Sequence[ast.AST]) -> "_Scope":
        names = {name: self.lookup(name) for name in {*self.names, *self.bound}}
        scope = _Scope(self.module, names, self.returns, owner)
        scope.bind(nodes)
        return scope

    def lookup(self, name: str) -> Values:
        return self.names.get(name, NOTHING) | frozenset(self.bound.get(name, ()))

    def bind(self, nodes: Sequence[ast.AST]) -> None:
        """Follow values into names until nothing new is learnt."""
        kept = [node for node in nodes if isinstance(node, _BINDING)]
        before = -1
        while before != (before := sum(map(len, self.bound.values()))):
            for node in kept:
                for target, values in self._bindings(node):
                    for name in _names(target):
                        self.bound[name] |= values

    def _bindings(self, node: ast.AST) -> Iterator[tuple[ast.AST, Values]]:
        match node:
            case ast.arg(annotation=ast.expr() as annotation):
                yield ast.Name(node.arg), self.annotated(annotation)
            case ast.Assign(targets=targets, value=value):
                yield from ((target, self.of(value)) for target in targets)
            case ast.AnnAssign(target=target, annotation=annotation):
                yield target, self.annotated(annotation) | self.of(node.value)
            case ast.NamedExpr(target=target, value=value):
                yield target, self.of(value)
            case ast.For(target=target, iter=iterable) | ast.AsyncFor(target=target, iter=iterable):
                yield target, self.of(iterable)
            case ast.comprehension(target=target, iter=iterable):
                yield target, self.of(iterable)
            case ast.withitem(context_expr=value, optional_vars=ast.expr() as target):
                yield target, self.of(value)

    def annotated(self, annotation: ast.AST | None) -> Values:
        """Return what an annotation promises: rows of the tables whose classes it names, or, as `type[...]`, the tables."""
        if annotation is None:
            return NOTHING
        named = {one for node in ast.walk(annotation) for one in self.of(node)}
        for text in (node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant)):
            words = re.findall(r"\w+", text) if isinstance(text, str) else ()  # a class may be quoted
            named |= NOTHING.union(*map(self.lookup, words))
        found = _tables(frozenset(named))
        is_type = isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "type"
        return found if is_type else _rows(found) | {one for one in found if one.endswith("orm.Session")}

    def of(self, node: ast.AST | None) -> Values:
        """Return what an expression may stand for."""
        match node:
            case ast.Name(id=name):
                return _tables(self.lookup(name) or frozenset({name} if hasattr(builtins, name) else ()))
            case ast.Attribute(value=value, attr=attr):
                return self._attribute(self.of(value), attr)
            case ast.Call():
                return self._called(node)
            case ast.Subscript(value=value, slice=ast.Constant(value=str() as name)) if name in COLUMNS:
                return frozenset({f"T:{name}"}) if any("tables" in one for one in self.of(value)) else NOTHING
            case (
                ast.Subscript(value=value)
                | ast.Await(value=value)
                | ast.Starred(value=value)
                | ast.NamedExpr(value=value)
                | ast.DictComp(value=value)
            ):
                return self.of(value)
            case ast.ListComp(elt=elt) | ast.SetComp(elt=elt) | ast.GeneratorExp(elt=elt):
                return self.of(elt)
            case ast.IfExp(body=body, orelse=orelse):
                return self.of(body) | self.of(orelse)
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                return self.all_of(parts)
            case ast.Dict(values=parts):
                return self.all_of(parts)
        return NOTHING

    def all_of(self, nodes: Iterable[ast.AST]) -> Values:
        return NOTHING.union(*(self.of(node) for node in nodes))

    def _attribute(self, values: Values, attr: str) -> Values:
        if attr == "__table__":
            return values
        return _tables(frozenset(f"{one}.{attr}" for one in values if one[:2] not in {"T:", "R:"}))

    def _called(self, call: ast.Call) -> Values:
        """Return what a call gives: what the callee promises, or for the library's own, and methods, rows of what goes in."""
        callee = self.of(call.func)
        given = self.all_of([*call.args, *(word.value for word in call.keywords)])
        if any(one.endswith(".aliased") for one in callee):
            return given
        if any(one[:2] == "T:" for one in callee):
            return _rows(callee)
        if any(one.endswith((".table", ".Table")) and one.startswith("sqlalchemy") for one in callee):
            names = [arg.value for arg in call.args[:1] if isinstance(arg, ast.Constant)]
            return frozenset(f"T:{name}" for name in names if name in COLUMNS)
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "self":
            return self.returns.get(f"{self.module}.{self.owner}.{call.func.attr}", NOTHING)
        own = [one for one in callee if one in self.returns]
        if own:
            return NOTHING.union(*(self.returns[one] for one in own))
        is_method = isinstance(call.func, ast.Attribute) and not callee
        if is_method or any(one.startswith("sqlalchemy") or hasattr(builtins, one) for one in callee):
            receiver = self.of(call.func.value) if isinstance(call.func, ast.Attribute) else NOTHING
            return _rows(given | receiver)
        return NOTHING


def _names(target: ast.AST) -> Iterator[str]:
    match target:
        case ast.Name(id=name):
            yield name
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from _names(part)
        case ast.Starred(value=value):
            yield from _names(value)


def _tables(values: Values) -> Values:
    return frozenset(f"T:{_TABLE_OF[one]}" if one in _TABLE_OF else one for one in values)


def _rows(values: Values) -> Values:
    return frozenset(f"R:{one[2:]}" for one in values if one[:2] in {"T:", "R:"})


def _named(values: Values) -> set[str]:
    return {one[2:] for one in values if one[:2] in {"T:", "R:"}}


def _writes(nodes: Sequence[ast.AST], scope: _Scope) -> Iterator[Write]:
    prose = {
        id(part) for node in nodes if isinstance(node, ast.Expr) for part in ast.walk(node) if _is_text(node.value)
    }
    within = {
        id(part)
        for node in nodes
        if isinstance(node, ast.JoinedStr | ast.BinOp)
        for child in ast.iter_child_nodes(node)
        for part in ast.walk(child)
    }
    for node in nodes:
        if id(node) in prose:
            continue
        if isinstance(node, ast.Call):
            yield from (Write(table, node.lineno) for table in _called_for(node, scope))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            rows = _named(scope.of(node.value))
            yield from (Write(table, node.lineno) for table in rows if node.attr in COLUMNS[table])
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and id(node) not in within:
            yield from (Write(table, node.lineno) for table in tables_in(_text(node, scope)))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _text(node: ast.AST, scope: _Scope) -> str:
    """Return the text of a constant, an f-string or a sum of them, with holes where something is put in."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, scope) for part in parts)
        case ast.BinOp(left=left, right=right, op=ast.Add()):
            return _text(left, scope) + _text(right, scope)
        case ast.BinOp(left=left):
            return _text(left, scope)
        case ast.FormattedValue(value=ast.Attribute(value=value, attr="__tablename__" | "__table__")):
            return next(iter(_named(scope.of(value))), _HOLE)
        case ast.Attribute(value=value, attr="__tablename__"):
            return next(iter(_named(scope.of(value))), _HOLE)
    return _HOLE


def _called_for(call: ast.Call, scope: _Scope) -> Iterator[str]:
    """Yield the tables that one call writes, or prepares a statement to write."""
    callee = scope.of(call.func)
    given = scope.all_of([*call.args, *(word.value for word in call.keywords)])
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    first = scope.of(call.args[0]) if call.args else given
    if any(map(_is_verb, callee)):
        yield from _named(first) or {UNKNOWN}
    elif any(map(_is_verb, given)):  # handed on: partial(update, JobRow), map(delete, rows)
        yield from _named(given) or {UNKNOWN}
    elif any(one[:2] == "T:" for one in callee):
        yield from _named(callee)
    elif "setattr" in callee:
        yield from _named(first)
    elif method in _VERBS and any(one[:2] == "T:" for one in scope.of(receiver)):
        yield from _named(scope.of(receiver))
    elif method in _VERBS and any(getattr(one, "attr", "") == "query" for one in ast.walk(call.func)):
        yield from _named(scope.of(receiver)) or {UNKNOWN}
    elif method in _SESSION_VERBS and (method in _BULK or _is_session(receiver, scope)):
        yield from _named(given) or {UNKNOWN}


def _is_verb(dotted: str) -> bool:
    return dotted.startswith("sqlalchemy.") and dotted.rpartition(".")[2] in _VERBS


def _is_session(node: ast.AST | None, scope: _Scope) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.endswith(("session", "transaction")) or any(one.endswith("orm.Session") for one in scope.of(node))
