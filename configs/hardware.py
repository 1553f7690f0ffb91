"""Resolves `dtype: auto` by what this machine's hardware supports."""

from __future__ import annotations

from pathlib import Path

from configs.schema import Recipe

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 and Arm; without one, bf16 matmuls are tens of times slower


def resolve_dtypes(recipe: Recipe, cpu_has_bf16: bool) -> Recipe:
    """The recipe with every `dtype: auto` replaced, so that a resume on another machine keeps the dtype."""

    def resolve(dtype: str, gpus: float) -> str:
        return dtype if dtype != "auto" else ("bfloat16" if gpus > 0 or cpu_has_bf16 else "float32")

    tree = recipe.model_dump()
    names = dict.fromkeys((*tree["scorer"], *recipe.scored_models))
    tree["scorer"] = {name: recipe.scorer_of(name).model_dump() for name in names}
    for role in (tree["rollout"], tree["teacher_rollout"], tree["learner"], *tree["scorer"].values()):
        role["dtype"] = resolve(role["dtype"], role["resources"]["gpus"])
    return Recipe.model_validate(tree)


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16 in hardware; False where /proc/cpuinfo cannot be read."""
    if not cpuinfo.exists():
        return False
    return any(
        _BF16_FLAGS & set(line.split())
        for line in cpuinfo.read_text().splitlines()
        if line.startswith(("flags", "Features"))
    )
