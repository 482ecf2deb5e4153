"""Renders the chat template of a checkpoint in bounded time and memory.

A template comes with a download, and computes. Jinja's sandbox keeps it away from Python's internals. Here it also has
a budget of steps, and every value that it makes has a bounded size. So a template that loops for hours, or builds a
text of gigabytes, ends with an error.
"""

import json
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

STEPS = 300_000
"""Number of the template's nodes, and of items of lists, that one rendering may evaluate."""
_ROOM = 100_000  # characters and items of a value, beside those that the template and the message need
_BITS = 4096  # of an integer
_WIDTH = 100  # of an indentation, and of what separates items
_LOOP, _NAME = "(loop)", "(name)"  # filters that the checks put in; a template cannot write these names
_FILTERS = frozenset(
    "abs attr capitalize count d default dictsort e escape first float groupby indent int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson "
    "trim unique upper wordcount".split()
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find index isalnum isalpha isdigit islower isnumeric isspace isupper join "
        "lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
        "splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    Cycler: frozenset({"next", "reset"}),
    LoopContext: frozenset({"changed", "cycle"}),
}


def render(template: str, message: str, begin: str, end: str) -> str:
    """Returns the text of a conversation in which a user has sent `message`, up to where the answer begins.

    Args:
      template: Jinja template, with the variables that Hugging Face transformers gives it.
      message: the user's message.
      begin: text of the begin token.
      end: text of the end token.

    Raises:
      Exception: the template is wrong, refuses the message, does something that is not allowed, or takes too many steps
        or too much memory.
    """
    environment = _Environment(_ROOM + 4 * (len(template) + len(message)))
    parts = environment.from_string(template).generate(
        messages=[{"role": "user", "content": message}],
        add_generation_prompt=True,
        bos_token=begin,
        eos_token=end,
        tools=None,
        documents=None,
    )
    return environment.concat(parts)


class _Environment(ImmutableSandboxedEnvironment):
    """Checks the size of every value that a template computes, outputs, passes on or gives a name, and counts steps."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, limit: int) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=self._check
        )
        self._limit, self._steps, self._nodes = limit, STEPS, 0
        self.globals["raise_exception"] = _raise
        del self.globals["lipsum"]
        self._stock = ImmutableSandboxedEnvironment()
        self._stock.filters["tojson"] = self._to_json
        self.filters = {name: self._filter(name) for name in _FILTERS}
        self.filters |= {_LOOP: self._loop, _NAME: self._name}

    def require_size(self, size: int) -> None:
        """Raises SecurityError if a value of `size` characters and items is too large."""
        if size > self._limit:
            raise SecurityError(f"it makes a value of more than {self._limit} characters or items")

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise SecurityError(f"it takes more than {STEPS} steps")

    def _check(self, value: Any, may_be_namespace: bool = False) -> Any:
        """Returns the value itself if it is not too large with all that it holds."""
        if not (isinstance(value, Namespace) and may_be_namespace):
            self._spend(self._measure(value))
        return value

    def _measure(self, value: Any) -> int:
        """Returns the steps that it takes to go through a value and all that it holds."""
        pending, items, characters = [value], 0, 0
        while pending:
            item = pending.pop()
            items += 1
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, int) and item.bit_length() > _BITS:
                raise SecurityError(f"it makes an integer of more than {_BITS} bits")
            elif isinstance(item, Namespace):
                raise SecurityError("a namespace cannot be printed, passed on or put into another value")
            elif isinstance(item, dict | list | tuple | range):
                self.require_size(items + characters + len(pending) + len(item))
                pending.extend(item)
                if isinstance(item, dict):
                    pending.extend(item.values())
            self.require_size(items + characters)
        return items + characters // 1000

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._nodes = _count(tree)
        checked: nodes.Template = _Checks().visit(tree)
        return checked

    def concat(self, parts: Iterable[str]) -> str:
        """Joins the parts of an output, if it is not too long."""
        kept, size = [], 0
        for part in parts:
            size += len(part)
            self.require_size(size)
            kept.append(part)
        return "".join(kept)

    @pass_context
    def _loop(self, context: Context, values: Any, weight: int) -> list[Any]:
        """Takes the steps of a whole loop before it begins: `weight` for each of the values."""
        if not isinstance(weight, int) or weight < 1:
            raise SecurityError("it uses an internal filter")
        values = list(values)
        self._check(values)
        self._spend(weight * len(values))
        return values

    @pass_context
    def _name(self, context: Context, value: Any, may_be_namespace: bool) -> Any:
        return self._check(value, may_be_namespace)

    def _filter(self, name: str) -> Any:
        @pass_context  # so that it is not computed when the template is compiled
        def apply(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            value = self._check(list(value) if isinstance(value, Iterator) else value)
            given = [*args, *kwargs.values()]
            self._check(given)
            if name in ("indent", "round", "tojson"):
                self._require_narrow(given)
            if name.startswith(("select", "reject")):
                value = list(value)
                self._spend(len(value) * self._measure(given))
            if name == "replace":
                if kwargs:
                    raise SecurityError("it gives the filter replace arguments by name")
                self._require_replacement(str(value), *map(str, args))
            if name == "join":
                value = list(value)
                self.require_size(len(value) * max((len(str(item)) for item in given), default=0))
            result = self._stock.call_filter(name, value, args, kwargs, context=context)
            return self._check(list(result) if isinstance(result, Iterator) else result)

        return apply

    def _require_narrow(self, given: Iterable[Any]) -> None:
        for width in given:
            if isinstance(width, list | tuple):
                self._require_narrow(width)
            elif len(width) > _WIDTH if isinstance(width, str) else isinstance(width, int) and abs(width) > _WIDTH:
                raise SecurityError(f"it indents, separates or rounds by more than {_WIDTH}")

    def _to_json(self, value: Any, ensure_ascii: bool = False, indent: int | str | None = None, **options: Any) -> str:
        """Is the filter `tojson`, which in Hugging Face's templates does not write for HTML."""
        return self.concat(json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, **options).iterencode(value))

    def _require_replacement(self, text: str, *args: str) -> None:
        """Raises SecurityError if a replacement may be too long: one at every character, or fewer of a longer text."""
        self.require_size(len(text) + (len(text) // max(1, len(args[0])) + 1) * max(map(len, args[1:]), default=0))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`; raises SecurityError if the result is too large."""
        self._check([left, right])
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple) and isinstance(other, int):
                self.require_size(len(one) * other)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats with %")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > _BITS:
                raise SecurityError(f"it makes an integer of more than {_BITS} bits")
        return self._check(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a macro, a global function, or a method whose result cannot be much larger than its arguments."""
        self = __self
        for value in (*args, *kwargs.values()):
            self._check(value, may_be_namespace=isinstance(__obj, Macro))
        if isinstance(__obj, Macro | BlockReference):
            self._spend(self._nodes)
        elif (owner := getattr(__obj, "__self__", None)) is not None:
            name = __obj.__name__
            if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items()):
                raise SecurityError(f"it calls the method {name} of {type(owner).__name__}, which is unsafe")
            self._check(owner if isinstance(owner, str | dict | list | tuple) else None)
            if name == "replace" and len(args) >= 2:
                self._require_replacement(owner, *map(str, args[:2]))
            if name == "join" and args:
                args = (list(args[0]),)
                self.require_size(len(args[0]) * (1 + len(owner)))
        elif not isinstance(__obj, Joiner) and __obj not in list(self.globals.values()):
            __context.call(__obj) if isinstance(__obj, Undefined) else _refuse_call(__obj)
        result: Any = super().call(__context, __obj, *args, **kwargs)
        return self._check(
            list(result) if isinstance(result, ItemsView | KeysView | ValuesView) else result, may_be_namespace=True
        )


class _Checks(NodeTransformer):
    """Puts the checks into a template's syntax tree that the environment is not called for anyway."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Lets a loop pay for all its iterations; those of a recursive loop are not known."""
        if node.recursive:
            raise SecurityError("it has a recursive loop")
        weight = _count(node)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _LOOP, weight)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Checks the text that `~` makes."""
        self.generic_visit(node)
        return _filtered(node, _NAME, False)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Lets a comparison, or a search, pay for the size of what it reads."""
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _NAME, True)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        """Lets a test pay for the size of what it compares with."""
        self.generic_visit(node)
        node.args = [_filtered(argument, _NAME, True) for argument in node.args]
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        """Checks a value that gets a name; a namespace may have one, but not be inside of another."""
        self.generic_visit(node)
        node.node = _filtered(node.node, _NAME, not isinstance(node.target, nodes.NSRef))
        return node

    def visit_With(self, node: nodes.With) -> nodes.Node:
        """Checks the values that get names."""
        self.generic_visit(node)
        node.values = [_filtered(value, _NAME, True) for value in node.values]
        return node


def _filtered(node: Any, name: str, argument: Any) -> nodes.Filter:
    const = nodes.Const(argument, lineno=node.lineno)
    made = nodes.Filter(node, name, [const], [], None, None, lineno=node.lineno)
    made.set_environment(node.environment)
    return made


def _count(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node))


def _refuse_call(called: Any) -> NoReturn:
    raise SecurityError(f"it calls {type(called).__name__}, which is unsafe")


def _raise(message: str) -> NoReturn:
    """Is the function `raise_exception` of chat templates."""
    raise ValueError(message)
