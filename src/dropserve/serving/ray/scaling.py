"""``serving/deploy/ray-serve.yaml``: how many replicas there are, on this machine and on a cluster alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dropserve.errors import UsageError
from dropserve.serving.ray.names import APPLICATION, BOOKS, BUILDER
from dropserve.serving.runtime import cores


class Scaling(BaseModel):
    """Options of Ray's deployments.

    Attributes:
        options: by the name of the deployment, as Ray names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    options: dict[str, dict[str, Any]] = {}

    @property
    def replicas(self) -> int:
        """That there are at first."""
        own = self.options.get(APPLICATION, {})
        growth = own.get("autoscaling_config") or {}
        found = own.get("num_replicas", growth.get("initial_replicas") or growth.get("min_replicas", 1))
        return found if isinstance(found, int) else 1

    @property
    def processors(self) -> float:
        """That a Ray here counts: enough for all replicas; those that grow are bounded by the cores."""
        own = self.options.get(APPLICATION, {})
        each = (own.get("ray_actor_options") or {}).get("num_cpus", 1)
        grows = own.get("autoscaling_config") or own.get("num_replicas") == "auto"
        return max(self.replicas * each, cores() if grows else 0)


def read_scaling(path: Path) -> Scaling:
    """Read the file, as Ray itself would.

    Raises:
        UsageError: with everything that is wrong with it.
    """
    import yaml  # noqa: PLC0415  # hosts only
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415  # Ray hosts only, and it takes seconds

    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        found = ServeDeploySchema.model_validate(raw)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError("\n".join([f"{path} is no Serve config file:", *lines])) from error
    ours = [application for application in found.applications if application.import_path == BUILDER]
    if len(ours) != 1:
        raise UsageError(f"{path}: expected one application with import_path: {BUILDER}; found {len(ours)}")
    entries = [
        entry
        for a in raw["applications"]
        if a["import_path"] == BUILDER
        for entry in a.get("deployments") or []
    ]
    if problems := [problem for entry in entries for problem in _unheard(entry)]:
        raise UsageError("\n".join([f"{path}:", *(f"  - {problem}" for problem in problems)]))
    options = {d.name: d.model_dump(exclude_unset=True, exclude={"name"}) for d in ours[0].deployments}
    return Scaling(options=options)


def _unheard(entry: dict[str, Any]) -> Iterator[str]:
    """What Ray would pass over in silence, or stumble over when it is started."""
    from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema  # noqa: PLC0415  # as above

    name, actor = entry.get("name"), entry.get("ray_actor_options") or {}
    known = set(DeploymentSchema.model_fields), set(RayActorOptionsSchema.model_fields)
    for where, section, keys in zip(("", "ray_actor_options."), (entry, actor), known, strict=True):
        for key in section:
            if key not in keys:
                yield f"{name}: unknown key {where}{key}; expected {', '.join(sorted(keys))}"
    if name not in {APPLICATION, BOOKS}:
        yield f"there is no deployment {name}; there are {APPLICATION} and {BOOKS}"
