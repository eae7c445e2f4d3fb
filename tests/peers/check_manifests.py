"""Hold Kubernetes documents against the types that KServe and Kubernetes publish: names, types, what must be.

Run by an interpreter that has ``kserve`` (its models are generated from KServe's OpenAPI document): the
documents are YAML on the input; what is wrong with them is printed as a list in JSON.
"""

import json
import re
import sys

import kserve
import kubernetes.client
import yaml

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}


def check(kind, found, where, problems):
    """Collect what is wrong with a value of this type."""
    if match := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        if not isinstance(found, list):
            problems.append(f"{where}: {found!r} is no list")
            return
        for i, each in enumerate(found):
            check(match[1], each, f"{where}[{i}]", problems)
    elif match := re.fullmatch(r"[dD]ict[(\[](\w+), (.+)[)\]]", kind):
        if not isinstance(found, dict):
            problems.append(f"{where}: {found!r} is no mapping")
            return
        for key, each in found.items():
            check(match[1], key, f"{where}: a key", problems)
            check(match[2], each, f"{where}.{key}", problems)
    elif kind in PLAIN:
        truth = isinstance(found, bool) and kind in {"int", "float"}
        if truth or not isinstance(found, PLAIN[kind]):
            problems.append(f"{where}: {found!r} is no {kind}")
    else:
        check_model(kind, found, where, problems)


def check_model(kind, found, where, problems):
    model = (
        getattr(kserve, kind, None) or getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
    )
    if not isinstance(found, dict):
        problems.append(f"{where}: {found!r} is no {kind}")
        return
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for key in found:
        if key not in names:
            problems.append(f"{where}: {kind} has no {key!r}; it has {', '.join(sorted(names))}")
    known = {names[key]: value for key, value in found.items() if key in names}
    try:
        model(**known)  # refuses what must be there and is not
    except ValueError as error:
        problems.append(f"{where}: {error}")
    for name, value in known.items():
        check(model.openapi_types[name], value, f"{where}.{model.attribute_map[name]}", problems)


def main():
    """Read, check, print."""
    problems = []
    for document in yaml.safe_load_all(sys.stdin):
        version = document["apiVersion"].rpartition("/")[2]
        kind = version[0].upper() + version[1:] + document["kind"]
        check_model(kind, document, document["kind"], problems)
    print(json.dumps(problems))


main()
