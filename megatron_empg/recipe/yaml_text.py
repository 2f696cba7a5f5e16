"""YAML as people mean it in a recipe: what YAML 1.1 reads as something else is read right, or refused."""

import re
from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError saying what is wrong and in which line.

    ``1e-6`` is a number. A key given twice, ``010`` (8 to YAML 1.1) and ``1:30`` (90) are errors.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("it is nested too deeply, or an alias holds itself") from None


class _Loader(yaml.SafeLoader):
    """Raises yaml.YAMLError for keys given twice and for numbers that are not what they look like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _refused(key, f"the key {key.value!r} is given twice")
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep))

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value.lstrip("+-")
        if ":" in text:
            raise _refused(node, f"{node.value} is a number to the base of 60; quote it, or write it in seconds")
        if re.fullmatch(r"0[0-9_]+", text):
            raise _refused(node, f"{node.value} is an octal number; leave the leading 0 out")
        if node.tag == "tag:yaml.org,2002:int":
            return int(self.construct_yaml_int(node))
        return float(self.construct_yaml_float(node))


def _refused(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
