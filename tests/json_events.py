"""Reads what commands print with `--json`, and checks it against the schema in docs/scripts.md."""

import json
import re

from conftest import REPOSITORY

TYPES = {"string": str, "integer": int, "number": (int, float), "object": dict, "array": list, "null": type(None)}
KEYWORDS = {"$schema", "type", "required", "properties", "oneOf", "const", "enum", "items", "additionalProperties"}


def schema():
    """The schema of one line."""
    page = (REPOSITORY / "docs" / "scripts.md").read_text()
    return json.loads(re.search(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])


def fits(value, rule):
    """Whether a value is valid by a rule of JSON Schema; only the keywords that the schema uses are known."""
    assert rule.keys() <= KEYWORDS, f"the checker does not know {rule.keys() - KEYWORDS}"
    if "const" in rule:
        return value == rule["const"]
    if "enum" in rule:
        return value in rule["enum"]
    kinds = rule.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool) or not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return False
    if isinstance(value, list):
        return all(fits(entry, rule.get("items", {})) for entry in value)
    if isinstance(value, dict):
        known = rule.get("properties", {})
        if not all(name in value for name in rule.get("required", ())):
            return False
        rules = {name: known[name] if name in known else rule.get("additionalProperties") for name in value}
        if not all(each is None or fits(value[name], each) for name, each in rules.items()):
            return False
        return "oneOf" not in rule or sum(fits(value, each) for each in rule["oneOf"]) == 1
    return True


def events_of(text):
    """The events of an output; each line must be valid."""
    events, rule = [json.loads(line) for line in text.splitlines()], schema()
    for event in events:
        assert fits(event, rule), event
    return events
