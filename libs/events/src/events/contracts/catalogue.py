"""The catalogue: what every contract looked like when it was published, and the check that it still holds.

`libs/events/catalogue/<context>.json` keeps, for each type and schema version, its JSON Schema and samples of payloads
as they may be stored. `python -m events.contracts.catalogue` compares the code with it and exits with 1 where

- a contract is gone, or its schema has changed in a way that stored events or subscribers would notice: then it is a
  new `schema_version` with an upcaster (docs/decisions/0015);
- a stored sample no longer decodes;
- a contract is new or has gained fields: `python -m events.contracts.catalogue write` records that. It refuses to
  record an incompatible change.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from events.contracts import registered, registry
from events.contracts.describe import example, json_schema

DIRECTORY = Path(__file__).parents[3] / "catalogue"

Catalogue = dict[str, dict[str, Any]]
"""`{type: {schema version: {"public", "schema", "samples"}}}`, for one context or all."""


def of_code() -> Catalogue:
    """The contracts of this process, with fresh samples: one with every field, one with the required ones."""
    catalogue: Catalogue = {}
    for contract in registered():
        samples = [example(contract.struct)]
        if (least := example(contract.struct, full=False)) != samples[0]:
            samples.append(least)
        schema = json.loads(json.dumps(json_schema(contract.struct)))  # as it reads back: tuples are lists
        entry = {"public": contract.public, "schema": schema, "samples": samples}
        catalogue.setdefault(contract.type, {})[str(contract.schema_version)] = entry
    return catalogue


def stored(directory: Path = DIRECTORY) -> Catalogue:
    """What was recorded."""
    catalogue: Catalogue = {}
    for path in sorted(directory.glob("*.json")):
        catalogue |= json.loads(path.read_text(encoding="utf-8"))
    return catalogue


def breaks(recorded: Catalogue, code: Catalogue) -> list[str]:
    """Why the code no longer honours what was recorded; empty where it does."""
    reasons = []
    for event_type, versions in recorded.items():
        for version, old in versions.items():
            name = f"{event_type} v{version}"
            new = code.get(event_type, {}).get(version)
            if new is None:
                reasons.append(f"{name}: gone, but the log holds such events")
                continue
            if old["public"] != new["public"]:
                reasons.append(f"{name}: was {'public' if old['public'] else 'private'}")
            reasons += [f"{name}: {reason}" for reason in _schema_breaks(old["schema"], new["schema"])]
            for sample in old["samples"]:
                try:
                    registry.decode(event_type, int(version), msgspec.json.encode(sample))
                except (msgspec.ValidationError, registry.UnknownContract) as error:
                    reasons.append(f"{name}: a stored sample does not decode: {error}")
    return reasons


def additions(recorded: Catalogue, code: Catalogue) -> list[str]:
    """The contracts that are new or have grown since they were recorded."""
    return [
        f"{event_type} v{version}"
        for event_type, versions in code.items()
        for version, entry in versions.items()
        if recorded.get(event_type, {}).get(version, {}).get("schema") != entry["schema"]
    ]


def write(code: Catalogue, directory: Path = DIRECTORY) -> None:
    """Records the code's contracts. Samples once recorded stay, for such events are in somebody's log."""
    directory.mkdir(exist_ok=True)
    before = stored(directory)
    contexts: dict[str, Catalogue] = {}
    for event_type, versions in sorted(code.items()):
        for version, entry in versions.items():
            kept = before.get(event_type, {}).get(version, {}).get("samples", [])
            entry["samples"] = kept + [sample for sample in entry["samples"] if sample not in kept]
        contexts.setdefault(event_type.split(".", 1)[0], {})[event_type] = versions
    for context, catalogue in contexts.items():
        text = json.dumps(catalogue, indent=1, ensure_ascii=False, sort_keys=True)
        (directory / f"{context}.json").write_text(text + "\n", encoding="utf-8")


def _schema_breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return list(_compare(old, new, "", old.get("$defs", {}), new.get("$defs", {})))


def _compare(
    old: dict[str, Any], new: dict[str, Any], path: str, old_defs: dict[str, Any], new_defs: dict[str, Any]
) -> list[str]:
    """What changed other than by addition. Fields may be added (optional ones), enumerations may grow."""
    old, new = _resolved(old, old_defs), _resolved(new, new_defs)
    at = path or "the payload"
    reasons: list[str] = []
    if "properties" in old:
        gone = old["properties"].keys() - new.get("properties", {}).keys()
        reasons += [f"{path}{name} is gone" for name in sorted(gone)]
        was, now = set(old.get("required", ())), set(new.get("required", ()))
        reasons += [f"{path}{name} was optional" for name in sorted(now - was & now) if name in old["properties"]]
        reasons += [f"{path}{name} is new and has no default" for name in sorted(now - old["properties"].keys())]
        reasons += [f"{path}{name} was required" for name in sorted(was - now - gone)]
        for name in sorted(old["properties"].keys() - gone):
            reasons += _compare(old["properties"][name], new["properties"][name], f"{path}{name}.", old_defs, new_defs)
        return reasons
    for key in ("type", "format", "const", "pattern"):
        if old.get(key) != new.get(key):
            reasons.append(f"{at.rstrip('.')}: {key} was {old.get(key)!r}, is {new.get(key)!r}")
    if lost := set(map(str, old.get("enum", ()))) - set(map(str, new.get("enum", ()))):
        reasons.append(f"{at.rstrip('.')}: no longer allows {', '.join(sorted(lost))}")
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            reasons += _compare(old[key], new[key], f"{path}{key}.", old_defs, new_defs)
        elif old.get(key) != new.get(key):
            reasons.append(f"{at.rstrip('.')}: {key} was {old.get(key)!r}, is {new.get(key)!r}")
    for number, (before, after) in enumerate(zip(old.get("anyOf", ()), new.get("anyOf", ()), strict=False)):
        reasons += _compare(before, after, f"{path}({number}).", old_defs, new_defs)
    if len(old.get("anyOf", ())) != len(new.get("anyOf", ())):
        reasons.append(f"{at.rstrip('.')}: was one of {len(old.get('anyOf', ()))} types")
    return reasons


def _resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    resolved: dict[str, Any] = defs[reference.rsplit("/", 1)[1]] if reference else schema
    return resolved


def main(arguments: list[str]) -> int:
    """`check` (the default) or `write`; 0 when all is well."""
    console = Console(stderr=True)
    code, recorded = of_code(), stored()
    if broken := breaks(recorded, code):
        console.print("These published contracts are broken; give them a new schema_version and an upcaster:")
        console.print("\n".join(f"  {reason}" for reason in broken), highlight=False)
        return 1
    if arguments == ["write"]:
        write(code)
        return 0
    if added := additions(recorded, code):
        console.print("New or grown contracts; record them with `python -m events.contracts.catalogue write`:")
        console.print("\n".join(f"  {name}" for name in added), highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
