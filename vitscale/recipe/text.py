"""YAML as its 1.2 standard and people mean it: `1e-3` is a number, `no` is text, a key given twice is an error."""

import re
from typing import Any, ClassVar

import yaml

from vitscale.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 (section 10.3.2) in place of 1.1's."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]   # the stubs take it for an instance's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(None, None, "a key wants to be a word, not a list or section", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice (lines {seen[key]} and {line})", None)
            seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)    # 010 is ten; YAML 1.1 would read eight
    try:
        return int(text, base)
    except ValueError:                              # `!!int abc`, or digits beyond what Python converts
        raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is no whole number", node.start_mark) from None


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    try:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is no number", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml(text: str, source: str) -> Any:
    """Parse one YAML document.  `source` names it in errors.  Raises RecipeError."""
    try:
        return yaml.load(text, _Loader)             # a SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise RecipeError(f"{source}:{where} {getattr(error, 'problem', None) or error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:      # a tag whose value is not of its kind: `!!bool maybe`
        raise RecipeError(f"{source}: holds a tag (!!...) that does not fit its value ({error}); leave tags out") from None
    except RecursionError:
        raise RecipeError(f"{source}: is nested too deeply to be read") from None


def compose(text: str) -> yaml.Node | None:
    """The document's nodes with their places in the text, of one that `read_yaml` reads."""
    return yaml.compose(text, _Loader)


def write_yaml(value: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10**6, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader above, or any YAML 1.1 reader, would take for something other than text."""


def _float_text(value: float) -> str:
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))


def _represent_text(dumper: _Dumper, value: str) -> yaml.Node:
    # Other styles fold or lose what is not printable, such as the line breaks of Unicode.
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", _float_text(value)))
for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])
